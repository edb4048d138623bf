"""A purse: joules set aside for a conversation, and the dial turned down so that they last.

Before each answer the purse chooses the dearest notch of the dial at which the prompt and as many tokens as may be said
are paid for by what is left; while the answer is said it counts what has woken, and ends it with the token that takes
the last of it. So a conversation never costs more than the budget and one token.

Joules are those of the machine's counters where there are any, else of a stated model (measure/energy.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from pragnosia.errors import PromptError
from pragnosia.inference.decode import Decoder, Trace
from pragnosia.inference.dial import Notch
from pragnosia.measure.accounting import Account, LayerAccount, bytes_of
from pragnosia.measure.activity import ActivityMeter, pairs
from pragnosia.measure.energy import Energy, EnergyModel
from pragnosia.measure.meter import EnergyMeter
from pragnosia.model.setting import WHOLE, Setting
from pragnosia.units import format_joules


@final
class Purse:
    """What may be spent on one decoder's text.

    purse = Purse(50.0, decoder, account(model), energy_model(), dial.frontier())
    decoder.setting = purse.choose(prompt_tokens, max_new_tokens)
    for token in decoder.speak(…):
        if purse.ran_out(): break
    """

    def __init__(
        self,
        joules: float,
        decoder: Decoder,
        counted: Account,
        model: EnergyModel,
        notches: Sequence[Notch] = (),
        meter: EnergyMeter | None = None,
    ) -> None:
        """`counted` is the whole model's account, `notches` are the dial's, dearest first; `meter` is entered and read.

        The dial is turned down from where the decoder has it, never up; without notches it stays there. Nothing is
        drafted, and who leaves early is remembered as it left: what is caught up with is paid for many at once, and the
        last token would not be the only one too many.
        """
        decoder.draft = None
        if decoder.setting.leave:
            decoder.setting = replace(decoder.setting, memory="propagated")
        self.notches = notches
        self.turn(decoder.setting)
        self.joules, self.decoder, self.account, self.model, self.meter = joules, decoder, counted, model, meter
        self._own = decoder.trace is None
        self._trace = decoder.trace = decoder.trace or Trace()
        self._activity, self._seen, self._climbs = ActivityMeter(counted), 0, 0

    def turn(self, setting: Setting) -> None:
        """Where the dial is turned down from; a setting that the dial does not know stays."""
        self.levels = _from(self.notches, setting)

    @property
    def spent(self) -> float:
        """Joules since the purse was made."""
        counts = self._trace.num_tokens[self._seen :]
        past = len(self.decoder.ids) - 1 - sum(counts)  # the last id has not been read yet
        for routings, tokens in zip(self._trace.routings[self._seen :], counts, strict=True):
            self._activity.add(routings, tokens=tokens, past=max(past, 0), logits=1)
            past += tokens
        for climb in self._trace.climbs[self._climbs :]:
            self._activity.climbed(climb)
        self._seen, self._climbs = self._seen + len(counts), len(self._trace.climbs)
        if self._own:  # nobody else reads it
            self._trace.routings.clear()
            self._trace.num_tokens.clear()
            self._trace.climbs.clear()
            self._seen = self._climbs = 0
        measured: Energy | None = self.meter.read() if self.meter is not None else None
        return self._activity.activity().energy(self.model, measured).joules

    def ran_out(self) -> bool:
        """Whether nothing is left."""
        return self.spent >= self.joules

    def choose(self, prompt: int, new: int) -> Setting:
        """The setting for an answer of at most `new` tokens to `prompt` new ones.

        The cheapest there is where none lets the answer be finished. Raises PromptError where what is left does not
        even pay for reading the prompt.
        """
        left, past = self.joules - self.spent, self.decoder.state.length
        for setting, share in self.levels:
            reading = self.reading(prompt, past, setting)
            if reading + new * self.saying(past + prompt + new // 2, setting, share) <= left:
                return setting
        if reading > left:
            raise PromptError(
                f"{format_joules(max(left, 0))} of {format_joules(self.joules)} are left, and reading this prompt of "
                f"{prompt} tokens takes about {format_joules(reading)}; give a larger --energy-budget or a shorter text"
            )
        return setting

    def saying(self, past: int, setting: Setting, share: float | None) -> float:
        """Joules of one token behind `past` others: a notch's measured `share` of what the whole model takes there."""
        return self.reading(1, past, setting) if share is None else share * self.reading(1, past, WHOLE)

    def reading(self, tokens: int, past: int, setting: Setting) -> float:
        """Joules, by the model, of one pass of all layers over so many new tokens on top of `past`."""
        account = self.account
        layers = [_at(layer, setting.awake) for layer in account.layers]
        operations = 2.0 * account.head_matrix_parameters
        awake = float(account.head_parameters)
        keys = 0.0
        for layer in layers:
            operations += tokens * layer.operations(layer.num_awake, 0)
            operations += 4 * layer.query_width * pairs(tokens, past, layer.window)
            woken = min(layer.num_units, tokens * layer.num_awake)  # of a prompt nearly all, each read once
            awake += layer.parameters + woken * layer.unit_parameters
            keys += 2 * layer.key_width * (layer.seen(past + tokens) + tokens) + layer.slot_width
        moved = bytes_of(awake, account.precision) + bytes_of(keys, account.cache_precision)
        return self.model.estimate(operations, moved, account.arithmetic).joules


def _from(notches: Sequence[Notch], setting: Setting) -> list[tuple[Setting, float | None]]:
    """The decoder's own setting, and the notches that cost less; each with its share of the whole, where measured."""
    if not notches:
        return [(setting, None)]
    shares = [(one.setting, one.joules_per_token / notches[0].joules_per_token) for one in notches]
    own = next((share for known, share in shares if known == setting), None)
    return [(setting, own), *((known, share) for known, share in shares if own is not None and share < own)]


def _at(layer: LayerAccount, awake: float) -> LayerAccount:
    """The layer with so much awake, as a thalamus counts."""
    return replace(layer, num_awake=max(1, round(awake * layer.num_awake))) if layer.num_units else layer
