"""NeuroGen: a language model of spiking neurons, as a citizen of transformers. Read it top to bottom.

    the last tokens -> currents into the first regions -> K steps of the brain a token -> traces of spikes -> logits

Everything it remembers is a NeuroGenState that goes in and comes out (`past_key_values` for transformers). Two ways
lead through the brain, with the same spikes: where slopes are wanted or many rows go through matrices, by products
(unrolled.py); else by events, in the compiled step (running.py), which touches only synapses of who spiked.

B rows, T tokens, K steps a token, N neurons, S synapses of a projection, J traces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils.generic import ModelOutput

from pragnosia.errors import ConfigError
from pragnosia.spiking.circuit import Circuit
from pragnosia.spiking.events import by_events, takes_events
from pragnosia.spiking.fires import Fires
from pragnosia.spiking.hearing import Heard, NeuroGenState
from pragnosia.spiking.int8 import through
from pragnosia.spiking.neurogen_configuration import NeuroGenConfig
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.state import BrainState
from pragnosia.spiking.unrolled import Slope, unroll
from pragnosia.spiking.voice import SILENT, Entrance, Readout, traced
from pragnosia.spiking.wires import Wires

IGNORED = -100
_FEW_ROWS = 4
"""Of so many or fewer, events are quicker than products even where every pair is wired."""


@dataclass
class NeuroGenOutput(ModelOutput):
    """What the model returns."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: NeuroGenState | None = None
    counts: Tensor | None = None
    """(B, T, N) spikes of each neuron in each token, where asked for."""
    routings: tuple[None, ...] | None = None


class NeuroGenForCausalLM(PreTrainedModel, GenerationMixin):
    """Token ids to the logits of the next token."""

    config_class = NeuroGenConfig
    main_input_name = "input_ids"
    accepts_loss_kwargs = False
    _is_stateful = True
    _no_split_modules = ["NeuroGenForCausalLM"]  # noqa: RUF012  (transformers reads it so)

    def __init__(self, config: NeuroGenConfig) -> None:
        super().__init__(config)
        brain = config.wired
        self.sizes = {name: one.size for name, one in brain.populations.items()}
        into, out = (sum(self.sizes[name] for name in names or ()) for names in (config.into, config.out))
        self.kappas = [math.exp(-1 / tau) for tau in config.trace_tokens or ()]
        self.enter = Entrance(config.vocab_size, into, config.rank_in, config.lines, int8=config.is_int8)
        self.wires = nn.ModuleList(Wires(config, number) for number in range(len(brain.projections)))
        self.read = Readout(config.vocab_size, out * len(self.kappas), config.rank, int8=config.is_int8)
        self._laid: tuple[Any, Brain, Circuit] | None = None
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Every initialiser.

        | tensor                  | starts as                                             |
        |-------------------------|-------------------------------------------------------|
        | codes, without a spread | N(0, current^2), parted between the lines             |
        | codes, with one         | N(0, 1), spread N(0, current^2 / rank), parted alike  |
        | down                    | N(0, 1 / features), over the gain                     |
        | up                      | N(0, 1 / what it sums over), over the gain without down |
        | bias                    | 0                                                     |
        | weight, starts, slots   | as the brain is drawn by its seed                     |
        """
        if self.config.is_int8:  # weights come from a model that learned
            return
        if isinstance(module, Entrance):
            strengths = float(self.config.line_fading) ** torch.arange(module.lines)
            strengths *= float(self.config.current) / strengths.norm()  # together they are `current`
            if module.spread is None:
                module.codes.normal_().unflatten(1, (module.lines, -1)).mul_(strengths[:, None])
            else:
                module.codes.normal_()
                module.spread.normal_(std=module.codes.shape[1] ** -0.5)
                module.spread.unflatten(0, (module.lines, -1)).mul_(strengths[:, None, None])
        elif isinstance(module, Readout):
            over = 1.0 if module.down is not None else module.gain
            module.up.normal_(std=module.up.shape[1] ** -0.5 / over)
            if module.down is not None:
                module.down.normal_(std=module.features**-0.5 / module.gain)
            module.bias.zero_()
        elif isinstance(module, Wires):
            module.draw(self.config)  # type: ignore[arg-type]

    # -- the way of a token

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Tensor | None = None,
        past_key_values: NeuroGenState | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        output_counts: bool = False,
        **others: Any,
    ) -> NeuroGenOutput:
        """Logits (B, T or logits_to_keep, V), and the state that includes the tokens; with labels the loss [nats]."""
        del others  # what else transformers hands on is no concern of ours
        there = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :].bool()
        if there is not None and not bool(there.all()):
            heard = self._row_by_row(input_ids, there, past_key_values)
        else:
            heard = self.hear(input_ids, past_key_values, slopes=torch.is_grad_enabled())
        said, state = self.say(heard, 0 if labels is not None else logits_to_keep)
        logits = said.transpose(0, 1)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().long(), ignore_index=IGNORED
            )
        wanted = self.config.use_cache if use_cache is None else use_cache
        return NeuroGenOutput(
            loss=loss,
            logits=logits,
            past_key_values=state if wanted else None,
            counts=heard.counts.transpose(0, 1) if output_counts else None,
        )

    def hear(
        self,
        ids: Int[Tensor, "B T"],
        state: NeuroGenState | None = None,
        *,
        slopes: bool = False,
        through_spikes: bool = True,
    ) -> Heard:
        """The brain reads tokens. With `slopes` gradients lead back, and the film of all steps is kept."""
        config: Any = self.config
        brain, circuit = self.brain, self.circuit
        slopes = slopes and not config.is_int8  # eight bits have none
        state = self.begin(len(ids)) if state is None else state
        drive, length = self.currents(ids, state.past), state.length + ids.shape[1]
        past = torch.cat([state.past, ids.T])[ids.shape[1] :]
        if not slopes and self._by_events(state):
            fires, brain_after = by_events(brain, config.into, drive, state.brain, steps=config.steps_per_token)
            read = self.read_among(fires)
            last = [read.faded(kappa).add_(one, alpha=kappa ** len(drive)) for kappa, one in self._tracing(state)]
            after = NeuroGenState(brain_after, torch.stack(last), past, length)
            return Heard(ids, after, state, fires=fires)
        window = unroll(
            *(circuit, [one.strengths() for one in self._wires], drive),
            *([circuit.span(name) for name in config.into], state.brain),
            steps=config.steps_per_token,
            slope=Slope(damp=config.slope_damp, width=config.slope_width) if slopes else None,
            through_spikes=through_spikes,
        )
        traces, after_traces = traced(self.read_of(window.counts), state.traces, self.kappas)
        after = NeuroGenState(window.state, after_traces, past, length)
        return Heard(ids, after, state, whole=(window.counts, traces), film=window.film)

    def say(self, heard: Heard, keep: int = 0) -> tuple[Float[Tensor, "T B V"], NeuroGenState]:
        """Logits after each token, or the last `keep`, and the state to go on with.

        Slopes lead to the readout's weights, and through what was heard with slopes to the brain.
        """
        if heard.fires is None or self.read.down is None:
            traces = heard.traces if heard.fires is None else self.traces_of(heard)
            return self.read(traces[-keep:]), heard.state
        codes, last = self.read.events(self.read_among(heard.fires), self._codes(heard.begun), self.kappas)
        return self.read.say(codes[-keep:]), replace(heard.state, codes=last, codes_by=self._weights_now)

    def traces_of(self, heard: Heard) -> Float[Tensor, "T B F"]:
        """Traces after each token, whichever way the brain was run."""
        if heard.whole is not None:
            return heard.traces
        return traced(self.read_of(heard.counts), heard.begun.traces, self.kappas)[0]

    def _tracing(self, state: NeuroGenState) -> Iterator[tuple[float, Tensor]]:
        return zip(self.kappas, state.traces, strict=True)

    def _codes(self, state: NeuroGenState) -> Float[Tensor, "J B R"]:
        """Of the traces that a state brings along."""
        if state.codes is not None and state.codes_by == self._weights_now:
            return state.codes
        assert self.read.down is not None
        if not state.length:  # nothing was heard
            return state.traces.new_zeros(*state.traces.shape[:2], self.read.down.shape[1])
        each = zip(state.traces, self.read.parts(len(self.kappas)), strict=True)
        return torch.stack([self.read.gain * through(one, *part) for one, part in each]).detach()

    @property
    def _weights_now(self) -> tuple[int, int]:
        """What tells the readout's weights from those before and after a step of learning."""
        down = self.read.down
        assert down is not None
        return down.data_ptr(), 0 if down.is_inference() else down._version

    def currents(self, ids: Int[Tensor, "B T"], past: Int[Tensor, "D-1 B"] | None = None) -> Float[Tensor, "T B I"]:
        """What tokens add to the membranes they enter, in each of their steps [mV]; `past` is on the lines before."""
        config: Any = self.config
        entering: Tensor = self.enter(torch.cat([self._silence(len(ids)) if past is None else past, ids.T]))
        return entering.float() * self.circuit.thresholds(config.into)

    def read_of(self, counts: Float[Tensor, "... N"]) -> Float[Tensor, "... n"]:
        """Of all neurons those that are read."""
        config: Any = self.config
        if config.out == list(self.sizes):
            return counts
        return torch.cat([counts[..., self.circuit.span(name)] for name in config.out], -1)

    def read_among(self, fires: Fires) -> Fires:
        """The same of a list."""
        config: Any = self.config
        if config.out == list(self.sizes):
            return fires
        return fires.among([self.circuit.span(name) for name in config.out])

    def spread_out(self, read: Float[Tensor, "... n"]) -> Float[Tensor, "... N"]:
        """The opposite: 0 for who is not read."""
        config: Any = self.config
        if config.out == list(self.sizes):
            return read
        out = read.new_zeros(*read.shape[:-1], sum(self.sizes.values()))
        for name, part in zip(config.out, read.split([self.sizes[name] for name in config.out], -1), strict=True):
            out[..., self.circuit.span(name)] = part
        return out

    def begin(self, batch: int = 1) -> NeuroGenState:
        """Before the first token."""
        brain = self.brain.begin(batch).each(lambda part: part.to(self.device))
        config: Any = self.config
        features = sum(self.sizes[name] for name in config.out)
        traces = torch.zeros(len(self.kappas), batch, features, device=self.device)
        return NeuroGenState(brain, traces, self._silence(batch))

    def _silence(self, batch: int) -> Int[Tensor, "D-1 B"]:
        return torch.full((self.enter.lines - 1, batch), SILENT, device=self.device)

    @property
    def _wires(self) -> list[Any]:
        return list(self.wires)

    @property
    def synapses(self) -> list[Tensor]:
        """Weights of the projections, in their order."""
        return [one.weight for one in self._wires]

    # -- the brain, with the synapses as they are

    @property
    def brain(self) -> Brain:
        """Regions and projections as running.py and measure/ take them; weights are shared, not copied."""
        return self._current()[0]

    @property
    def circuit(self) -> Circuit:
        """The same, laid flat."""
        return self._current()[1]

    def _current(self) -> tuple[Brain, Circuit]:
        wires = self._wires
        key = [
            (one.weight.data_ptr(), 0 if one.is_matrix else (one.slots.data_ptr(), one.slots._version)) for one in wires
        ]
        if self._laid is None or self._laid[0] != key:
            config: Any = self.config
            wired = config.wired
            delays = [wired.delay_steps(one)[0] for one in wired.projections]
            brain = Brain.wired(wired, (one.synapses(delay) for one, delay in zip(wires, delays, strict=True)))
            self._laid = key, brain, Circuit.of(brain, self.device)
        return self._laid[1:]

    def _by_events(self, state: NeuroGenState) -> bool:
        config: Any = self.config
        few = state.brain.rows <= _FEW_ROWS or config.is_int8 or not all(one.is_matrix for one in self._wires)
        return few and takes_events(state.brain)

    def _row_by_row(self, ids: Tensor, there: Tensor, past: NeuroGenState | None) -> Heard:
        """Rows of different lengths: each reads its own tokens, and padding is not there."""
        heard = []
        for row, places in enumerate(there):
            if not bool(places.any()):
                raise ConfigError(f"row {row} of the batch is padding alone; leave it out")
            before = None if past is None else past.rows(torch.tensor([row]))
            heard.append(self.hear(ids[row : row + 1, places], before, slopes=torch.is_grad_enabled()))
        counts, traces = (
            torch.cat([_spread(part, at) for part, at in zip(parts, there, strict=True)], 1)
            for parts in ([one.counts for one in heard], [self.traces_of(one) for one in heard])
        )
        state = NeuroGenState(
            BrainState.joined([one.state.brain for one in heard]),
            torch.cat([one.state.traces for one in heard], 1),
            torch.cat([one.state.past for one in heard], 1),
            max(one.state.length for one in heard),
        )
        return Heard(ids, state, state, whole=(counts, traces))

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """No cache of keys and values: a state comes with the first tokens."""
        return False

    def get_input_embeddings(self) -> None:  # type: ignore[override]
        """There are none: a token is a current."""

    def get_output_embeddings(self) -> None:
        """There are none: logits are read off spikes."""


def _spread(part: Float[Tensor, "t 1 N"], there: Tensor) -> Float[Tensor, "T 1 N"]:
    """With rows of zeros where there was no token."""
    places = there.nonzero()[:, 0]
    return part.new_zeros(len(there), *part.shape[1:]).index_copy(0, places, part)
