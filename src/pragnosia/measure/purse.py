"""A purse: joules set aside for a conversation, and the dial turned down so that they last.

Before each answer the purse chooses the most energetic setting at which the prompt and as many tokens as may be said
are paid for by what is left; while the answer is said it counts what has woken, and ends it with the token that takes
the last of it. So a conversation never costs more than the budget and one token.

Joules are those of the machine's counters where there are any, else of a stated model (measure/energy.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import final

from pragnosia.errors import PromptError
from pragnosia.inference.decode import Decoder, Trace
from pragnosia.measure.accounting import Account, LayerAccount, bytes_of
from pragnosia.measure.activity import ActivityMeter, pairs
from pragnosia.measure.energy import Energy, EnergyModel
from pragnosia.measure.meter import EnergyMeter
from pragnosia.units import format_joules

DIAL = tuple(level / 10 for level in range(10, 0, -1))
"""The settings a purse chooses among, most energetic first."""


@final
class Purse:
    """What may be spent on one decoder's text.

    purse = Purse(50.0, decoder, account(model), energy_model())
    decoder.energy = purse.choose(prompt_tokens, max_new_tokens)
    for token in decoder.speak(…):
        if purse.ran_out(): break
    """

    def __init__(
        self, joules: float, decoder: Decoder, counted: Account, model: EnergyModel, meter: EnergyMeter | None = None
    ) -> None:
        """`counted` is the account of the decoder's model at energy 1; `meter` has been entered and is read.

        The dial is turned down from where the decoder has it, never up. All layers speak: drafts, and tokens that left
        early and are caught up with, are paid for many at once, and the last token would not be the only one too many.
        """
        decoder.early = None
        self.levels = (decoder.energy, *(level for level in DIAL if level < decoder.energy))
        self.joules, self.decoder, self.account, self.model, self.meter = joules, decoder, counted, model, meter
        self._own = decoder.trace is None
        self._trace = decoder.trace = decoder.trace or Trace()
        self._activity, self._seen = ActivityMeter(counted), 0

    @property
    def spent(self) -> float:
        """Joules since the purse was made."""
        counts = self._trace.num_tokens[self._seen :]
        past = len(self.decoder.ids) - 1 - sum(counts)  # the last id has not been read yet
        for routings, tokens in zip(self._trace.routings[self._seen :], counts, strict=True):
            self._activity.add(routings, tokens=tokens, past=max(past, 0), logits=1)
            past += tokens
        self._seen += len(counts)
        if self._own:  # nobody else reads it
            self._trace.routings.clear()
            self._trace.num_tokens.clear()
            self._seen = 0
        measured: Energy | None = self.meter.read() if self.meter is not None else None
        return self._activity.activity().energy(self.model, measured).joules

    def ran_out(self) -> bool:
        """Whether nothing is left."""
        return self.spent >= self.joules

    def choose(self, prompt: int, new: int) -> float:
        """The dial's setting for an answer of at most `new` tokens to `prompt` new ones.

        The least setting there is where none lets the answer be finished. Raises PromptError where what is left does
        not even pay for reading the prompt.
        """
        left, past = self.joules - self.spent, self.decoder.state.length
        for level in self.levels:
            reading = self.cost(prompt, past, level)
            if reading + sum(self._speaking(new, past + prompt, level)) <= left:
                return level
        if reading > left:
            raise PromptError(
                f"{format_joules(max(left, 0))} of {format_joules(self.joules)} are left, and reading this prompt of "
                f"{prompt} tokens takes about {format_joules(reading)}; give a larger --energy-budget or a shorter text"
            )
        return level

    def cost(self, tokens: int, past: int, level: float) -> float:
        """Joules, by the model, of one pass over so many new tokens on top of `past`."""
        account = self.account
        layers = [_at(layer, level) for layer in account.layers]
        operations = 2.0 * account.head_matrix_parameters
        awake = float(account.head_parameters)
        keys = 0.0
        for layer in layers:
            operations += tokens * layer.operations(layer.num_awake, 0)
            operations += 4 * layer.query_width * pairs(tokens, past, layer.window)
            woken = min(layer.num_units, tokens * layer.num_awake)  # of a prompt nearly all, each read once
            awake += layer.parameters + woken * layer.unit_parameters
            keys += 2 * layer.key_width * (layer.seen(past + tokens) + tokens)
        moved = bytes_of(awake, account.precision) + bytes_of(keys, account.cache_precision)
        return self.model.estimate(operations, moved, account.precision).joules

    def _speaking(self, new: int, past: int, level: float) -> Iterator[float]:
        """Of the answer: its first, middle and last token stand for all."""
        for at in (0, new // 2, new):
            yield self.cost(1, past + at, level) * new / 3


def _at(layer: LayerAccount, level: float) -> LayerAccount:
    """The layer with the dial at `level`, as a thalamus counts."""
    return replace(layer, num_awake=max(1, round(level * layer.num_awake))) if layer.num_units else layer
