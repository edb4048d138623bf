"""A purse: joules set aside for a conversation, and the dial turned down so that they last.

Before each answer the purse chooses the dearest notch of the dial at which the prompt and as many tokens as may be said
are paid for by what is left; while the answer is said it counts what has woken, and ends it with the token that takes
the last of it. So a conversation never costs more than the budget and one token.

Joules are those of a stated model (measure/energy.py), which never says less of a prompt than reading it then takes; or
of the machine's counters, where there are any. Those cannot be foreseen: a prompt is then read in pieces that double,
from one token on, and what they took says what the rest will take. Asking a store is counted when it was done and not
foreseen. What runs while nobody is answered is not counted.
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

_MEND = "give a larger --energy-budget or a shorter text"


@final
class Purse:
    """What may be spent on one decoder's text.

    purse = Purse(50.0, decoder, account(model), energy_model(), dial.frontier())
    purse.read(prompt, max_new_tokens)
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
        self._activity, self._seen, self._climbs, self._recalls = ActivityMeter(counted), 0, 0, 0
        self._measured, self._mark = 0.0, self._counted()

    def turn(self, setting: Setting) -> None:
        """Where the dial is turned down from; a setting that the dial does not know stays."""
        self.levels = _from(self.notches, setting)

    @property
    def spent(self) -> float:
        """Joules, when they were last counted."""
        return self._modelled() if self._mark is None else self._measured

    @property
    def empty(self) -> bool:
        """Whether nothing was left then."""
        return self.spent >= self.joules

    def ran_out(self) -> bool:
        """Count what was done since; whether nothing is left."""
        counts = self._trace.num_tokens[self._seen :]
        past = self.decoder.length - sum(counts)
        for routings, tokens in zip(self._trace.routings[self._seen :], counts, strict=True):
            self._activity.add(routings, tokens=tokens, past=max(past, 0), logits=1)
            past += tokens
        for climb in self._trace.climbs[self._climbs :]:
            self._activity.climbed(climb)
        for effort in self._trace.recalls[self._recalls :]:
            self._activity.recalled(effort)
        self._seen, self._climbs = self._seen + len(counts), len(self._trace.climbs)
        self._recalls = len(self._trace.recalls)
        if self._own:  # nobody else reads it
            self._trace.routings.clear()
            self._trace.num_tokens.clear()
            self._trace.climbs.clear()
            self._trace.recalls.clear()
            self._seen = self._climbs = self._recalls = 0
        before, self._mark = self._mark, self._counted()
        if before is not None and self._mark is not None:
            self._measured += self._mark - before
        return self.empty

    def read(self, ids: list[int], new: int) -> None:
        """Let the decoder read `ids`, and set it for an answer of at most `new` tokens.

        Raises PromptError where what is left does not pay for reading them; the decoder is then as it was.
        """
        decoder = self.decoder
        before, state = list(decoder.ids), decoder.state
        decoder.setting = self.choose(len(ids), new)
        decoder.read(ids)
        self._mark = self._counted()  # what ran meanwhile is not ours
        if self._mark is None:
            return
        begun, piece = self.spent, 1
        try:
            while len(decoder.ids) - decoder.length > 1:
                decoder.take_in(piece)
                if self.ran_out():
                    raise PromptError(
                        f"nothing of {format_joules(self.joules)} is left: reading {decoder.length - state.length} of "
                        f"the prompt's {len(ids)} tokens took {format_joules(self.spent - begun)}; {_MEND}"
                    )
                each = (self.spent - begun) / (decoder.length - state.length)
                piece = min(2 * piece, max(1, int((self.joules - self.spent) / max(each, 1e-12))))
        except PromptError:
            decoder.rewind(state)
            decoder.ids[:] = before
            raise
        decoder.setting, _ = self._afforded(1, new)

    def choose(self, prompt: int, new: int) -> Setting:
        """The setting for an answer of at most `new` tokens to `prompt` new ones.

        The cheapest there is where none lets the answer be finished. Raises PromptError where what is left does not
        even pay for reading the prompt.
        """
        left = self.joules - self.spent
        setting, reading = self._afforded(prompt, new)
        if reading > left:
            raise PromptError(
                f"{format_joules(left) if left > 0 else 'nothing'} of {format_joules(self.joules)} is left, and "
                f"reading this prompt of {prompt} tokens takes about {format_joules(reading)}; {_MEND}"
            )
        return setting

    def _afforded(self, prompt: int, new: int) -> tuple[Setting, float]:
        """The dearest setting that what is left pays for, or the cheapest; and the joules of the prompt there."""
        left, past, scale = self.joules - self.spent, self.decoder.length, self._scale()
        for setting, share in self.levels:
            reading = scale * self.reading(prompt, past, setting)
            if reading + scale * new * self.saying(past + prompt + new // 2, setting, share) <= left:
                break
        return setting, reading

    def _scale(self) -> float:
        """Joules counted for one of the model's, which are the least that can be; 1 where nothing was counted yet."""
        if self._mark is None or not self._measured:
            return 1.0
        return max(1.0, self._measured / max(self._modelled(), 1e-12))

    def _modelled(self) -> float:
        return self._activity.activity().energy(self.model).joules

    def _counted(self) -> float | None:
        """By the machine's counters, of all that has run since they began."""
        measured: Energy | None = self.meter.read() if self.meter is not None else None
        return None if measured is None else measured.joules

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
