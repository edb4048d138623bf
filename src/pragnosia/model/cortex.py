"""The cortex. Read this file top to bottom and you have read the model.

    tokens -> embeddings -> [ x += mixer(norm(x)) ;  x += feed_forward(norm(x)) ] x layers -> norm -> logits

A mixer lets tokens look back; a feed-forward thinks about each token alone, and in a sparse layer only the few units
that the thalamus wakes do so. Whatever is carried from token to token is a State value that goes in and comes out.

Here are torch modules alone. modeling.py makes transformers models of them, whose base class takes seconds to import:
whoever only speaks, or only asks for shapes, takes the `PlainCortex` and does without.

B batch, T time, D width, H heads, K head width, U units in a bank, A awake units, F unit width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import Cache, GenerationConfig
from transformers import initialization as init

from pragnosia.errors import ConfigError
from pragnosia.model.attention import Moment, RotaryPositions
from pragnosia.model.bank import Table
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.exits import ExitLesson, exit_loss, pass_some, rows_of
from pragnosia.model.gates import TokenGate, check_gated, pass_gate
from pragnosia.model.linear import Linear
from pragnosia.model.norm import RMSNorm
from pragnosia.model.output_cortex import PragnosiaCausalLMOutput, PragnosiaOutput, next_token_loss
from pragnosia.model.parts import FEED_FORWARDS, MIXERS, part
from pragnosia.model.remembering import fresh_memory, pass_slots, slot_organs
from pragnosia.model.setting import WHOLE, Setting
from pragnosia.model.sparse import SparseFeedForward
from pragnosia.model.state import Memory, State, as_visibility, borrowed, causal_mask
from pragnosia.model.thalamus import Routing
from pragnosia.model.workspace_state import WorkspaceState, workspace_state

_ZEROS = {"bias", "up_bias", "down_bias", "sinks", "balance", "steering", "num_observed", "center"}


class CortexLayer(nn.Module):
    """Mix with the past, then think."""

    def __init__(self, config: PragnosiaConfig, layer: int) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mixer = part(MIXERS, config.mixers[layer])(config, layer)  # type: ignore[index]
        self.feed_forward_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.feed_forward = part(FEED_FORWARDS, config.feed_forwards[layer])(config, layer)  # type: ignore[index]
        self.gate: TokenGate | None = None
        if config.gates is not None and layer in config.gates.layers:
            check_gated(layer, self.mixer)
            self.gate = TokenGate(config.hidden_size, config.gates)
        self.working_memory, self.workspace = slot_organs(config, layer)

    def forward(
        self, x: Float[Tensor, "B T D"], memory: Memory | None, moment: Moment
    ) -> tuple[Float[Tensor, "B T D"], Memory | None, Routing | None]:
        """One layer: the stream, this layer's memory, and who woke."""
        if self.gate is not None:
            return pass_gate(self, x, memory, moment)
        if self.working_memory is not None or self.workspace is not None:
            return pass_slots(self, x, memory, moment)
        mixed, memory = self.mixer(self.mixer_norm(x), memory, moment)
        x = x + mixed
        thought, routing = self.feed_forward(self.feed_forward_norm(x), moment)
        return x + thought, memory, routing


@torch.no_grad()
def initialise(module: nn.Module, config: PragnosiaConfig) -> None:
    """Every initialiser of the house, by the tensor's own name.

    | tensor                                        | starts as                             |
    |-----------------------------------------------|---------------------------------------|
    | weight (embedding, head, projection, router), | N(0, initializer_range)               |
    | up of a bank                                  |                                       |
    | weight that writes to the stream, down        | N(0, initializer_range / sqrt(2 L))   |
    | weight of a norm                              | 1                                     |
    | biases, sinks, balance, steering, num_observed,| 0                                     |
    | center, weight of a layer that starts silent  |                                       |
    | spread                                        | 1                                     |
    | keys of long-term memory                      | N(0, 1 / width of a key)              |
    | rows of long-term memory                      | N(0, initializer_range)               |
    | thresholds                                    | 1/2                                   |
    | inv_freq                                      | the frequencies of the rotation       |
    """
    std = config.initializer_range
    writer_std = std / math.sqrt(2 * config.num_hidden_layers)
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if name == "weight" and isinstance(module, RMSNorm):
            init.ones_(tensor)
        elif name in _ZEROS or getattr(module, "starts_silent", False):
            init.zeros_(tensor)
        elif name in ("weight", "up", "down"):
            writes = name == "down" or getattr(module, "writes_to_stream", False)
            init.normal_(tensor, std=writer_std if writes else std)
        elif name == "rows":
            init.normal_(tensor, std=std)
        elif name == "keys":
            init.normal_(tensor, std=tensor.shape[-1] ** -0.5)
        elif name == "spread":
            init.ones_(tensor)
        elif name == "thresholds":
            init.constant_(tensor, 0.5)
        elif isinstance(module, RotaryPositions):
            init.copy_(tensor, module.frequencies(None)[0])


class CortexStack(nn.Module):
    """The stack: token ids to hidden states."""

    config: Any  # a PragnosiaConfig

    def grow(self, config: PragnosiaConfig, layer: type[CortexLayer]) -> None:
        """Put the organs in their places."""
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = RotaryPositions(config)
        self.hippocampus = (
            None if config.hippocampus is None else Table(config.hippocampus.num_rows, config.hidden_size)
        )
        self.layers = nn.ModuleList(layer(config, number) for number in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past_key_values: State | Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        setting: Setting = WHOLE,
        lesson: ExitLesson | None = None,
        **_: Any,
    ) -> PragnosiaOutput:
        """Hidden states of the new tokens, and the state that includes them; a `lesson` is for training (exits.py)."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, not both and not neither")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        state = self._state(past_key_values, use_cache, x)
        moment = self.moment(x, attention_mask, position_ids, past_key_values, seen=state.length, setting=setting)

        memories: list[Memory | None] = []
        routings: list[Routing | None] = []
        stream = [x]
        for layer, memory, rows in zip(self.layers, state.layers, rows_of(lesson, len(self.layers)), strict=True):
            x, memory, routing = layer(x, memory, moment) if rows is None else pass_some(layer, x, rows, memory, moment)
            memories.append(memory)
            routings.append(routing)
            if output_hidden_states:
                stream.append(x)
        x = self.norm(x)

        if isinstance(past_key_values, Cache):
            carried: State | Cache | None = past_key_values
        else:
            remembers = any(memory is not None for memory in memories)
            carried = State(tuple(memories), state.length + x.shape[1]) if remembers else None
        return PragnosiaOutput(
            last_hidden_state=x,
            past_key_values=carried,
            hidden_states=(*stream[:-1], x) if output_hidden_states else None,
            routings=tuple(routings),
        )

    def fresh_state(self, batch: int = 1, room: int = 256) -> State:
        """An empty state with room for `room` tokens before it has to grow."""
        like = self.embed_tokens.weight
        layers: list[Any] = list(self.layers)
        # beside the layer's norm, which stays where it computes
        rows = [like.new_empty(0, like.shape[-1], device=layer.mixer_norm.weight.device) for layer in layers]
        memories = (fresh_memory(layer, batch, room, its) for layer, its in zip(layers, rows, strict=True))
        return State(tuple(memories))

    def _state(self, given: State | Cache | None, use_cache: bool | None, x: Tensor) -> State:
        """What the layers remember on entry: given, borrowed, fresh, or nothing."""
        if isinstance(given, State):
            return given
        if given is not None:
            has_slots = self.config.working_memory is not None or self.config.workspace is not None
            return borrowed(given, len(self.layers), slots=has_slots)
        wanted = self.config.use_cache if use_cache is None else use_cache
        if wanted and not self.training:
            return self.fresh_state(x.shape[0], x.shape[1] + 64)
        return State((None,) * len(self.layers))

    def moment(
        self,
        x: Tensor,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past: State | Cache | None = None,
        *,
        seen: int,
        setting: Setting,
    ) -> Moment:
        """Positions and masks of new tokens after `seen` others, worked out once for all layers."""
        if position_ids is None:
            position_ids = (torch.arange(x.shape[1], device=x.device) + seen)[None]
        if isinstance(past, Cache):
            # Only transformers' generate() comes with one of its caches, and what builds its masks is slow to import.
            from transformers.masking_utils import create_masks_for_generate

            # generate() builds the masks itself for a cache of fixed size.
            built = (
                attention_mask
                if isinstance(attention_mask, dict)
                else create_masks_for_generate(self.config, x, attention_mask, past, position_ids)
            )
            masks = {kind: as_visibility(mask) for kind, mask in built.items()}
            flat = isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 and not attention_mask.all()
            present = attention_mask if flat else None
        else:
            windows = {"full_attention": None, "sliding_attention": self.config.sliding_window}
            present = None if attention_mask is None or bool(attention_mask.all()) else attention_mask
            masks = {
                kind: causal_mask(x.shape[1], seen, windows[kind], present, x.device)
                for kind in dict.fromkeys(self.config.layer_types or ())
            }
        # a static cache counts on in the tensor it gave
        counted: Any = seen
        before = counted.clone() if isinstance(counted, Tensor) else counted
        rotation, table = self.positions(position_ids, x.dtype), self.hippocampus
        return Moment(rotation, masks, setting, seen=before, present=present, table=table)


class Cortex(nn.Module):
    """The stack with its voice: token ids to the logits of the next token."""

    config: Any  # a PragnosiaConfig
    generation_config: GenerationConfig
    model: Any  # a CortexStack

    def grow(self, config: PragnosiaConfig, stack: CortexStack) -> None:
        """Put the organs in their places."""
        self.config, self.model = config, stack
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def device(self) -> torch.device:
        """Where it computes; layers that come and go are nowhere in between, the last norm always stays."""
        return self.model.norm.weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.model.norm.weight.dtype  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past_key_values: State | Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        setting: Setting = WHOLE,
        lesson: ExitLesson | None = None,
        **others: Any,
    ) -> PragnosiaCausalLMOutput:
        """Logits (B, T or logits_to_keep, V); with labels the loss [nats], and in training only the loss."""
        if "energy" in others:  # what else transformers hands on is no concern of ours
            raise ConfigError("a model takes setting=Setting(awake=…); energy is looked up by Pragnosia, as calibrated")
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=bool(output_hidden_states) or lesson is not None,
            setting=setting,
            lesson=lesson,
        )
        hidden = outputs.last_hidden_state
        loss = None if labels is None else next_token_loss(hidden, self.lm_head.weight, labels)
        beside = None
        if lesson is not None and lesson.weights and labels is not None:
            beside = exit_loss(lesson, outputs.hidden_states, self.model.norm, self.lm_head.weight, labels)
        logits = None
        if labels is None or not self.training:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])
        return PragnosiaCausalLMOutput(
            loss=loss,
            exit_loss=beside,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            routings=outputs.routings,
        )

    def fresh_state(self, batch: int = 1, room: int = 256) -> State:
        """An empty state with room for `room` tokens before it has to grow."""
        state: State = self.model.fresh_state(batch, room)
        return state

    def workspace_state(self, ids: Sequence[int] | Int[Tensor, " T"]) -> WorkspaceState:
        """What is in the global workspace behind these tokens (workspace_state.py). Raises ConfigError for none."""
        return workspace_state(self, ids)

    def experts(self) -> Iterator[SparseFeedForward]:
        """The sparse feed-forwards, from the first layer to the last."""
        for layer in self.model.layers:
            if isinstance(layer.feed_forward, SparseFeedForward):
                yield layer.feed_forward

    @contextmanager
    def steer(self, lobe: str, amount: float) -> Iterator[None]:
        """Within the context every router adds `amount` to the logits of a lobe's units."""
        layers = list(self.experts())
        if not layers:
            raise ConfigError("this model is dense: it has no lobes to steer")
        with ExitStack() as stack:
            for experts in layers:
                stack.enter_context(experts.steered(lobe, amount))
            yield

    @contextmanager
    def lesion(self, lobe: str) -> Iterator[None]:
        """Within the context the lobe's units never wake."""
        with self.steer(lobe, float("-inf")):
            yield

    def rebalance(self, routings: tuple[Routing | None, ...]) -> None:
        """Move every router's balance by what woke in the last step. A learning rule calls it between steps."""
        for layer, routing in zip(self.model.layers, routings, strict=True):
            if routing is None:
                continue
            if routing.gate is not None:
                layer.gate.rebalance(routing.gate)
            if routing.asked is not None:
                layer.feed_forward.rebalance(routing.asked)
            if routing.routes and len((passed := routing.passed).units):
                layer.feed_forward.thalamus.rebalance(passed)


@final
class _Unfilled(TorchFunctionMode):
    """Within it torch.nn.init does nothing: on the device `meta` it would import torch's tracer, seconds of it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@final
class PlainStack(CortexStack):
    """The stack as torch has it."""

    def __init__(self, config: PragnosiaConfig) -> None:
        super().__init__()
        self.grow(config, CortexLayer)


@final
class PlainCortex(Cortex):
    """The model as torch has it: the same tensors by the same names, and nothing of transformers around them."""

    def __init__(self, config: PragnosiaConfig) -> None:
        super().__init__()
        self.grow(config, PlainStack(config))
        self.generation_config = GenerationConfig.from_model_config(config)

    @classmethod
    def unfilled(cls, config: PragnosiaConfig) -> PlainCortex:
        """With shapes and without storage."""
        with torch.device("meta"), _Unfilled():
            model = cls(config)
        model.tie_weights()
        return model

    def tie_weights(self) -> None:
        """One table at both ends, where the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
