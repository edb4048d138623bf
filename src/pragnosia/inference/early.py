"""Two ways to speak with fewer layers, over a Ladder. Both stand where a Program stands, and are asked as it is.

Foresight   drafts with the first layers and judges the drafts with the others, together: the same words, exactly
Leaving     believes an exit that is sure enough: fewer operations, now and then another word

Elhoushi et al. 2024 (LayerSkip), arXiv 2404.16710: exits share the last norm and the output head. Drafting here ends
where the exit is unsure, and drafts are as long as they lately were worth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from pragnosia.inference.exits import Draft
from pragnosia.inference.ladder import Climb, Ladder
from pragnosia.kernels.span import MOST
from pragnosia.model.cortex import Cortex
from pragnosia.model.setting import Setting
from pragnosia.model.state import State

READING = 4
"""Tokens that share one reading of a weight: drafts are so many less the one that is known."""
LONGEST = 15
"""Drafts at a time."""
_IN_VAIN, _REST = 8, 16


@dataclass
class Tally:
    """What speaking with fewer layers came to."""

    tokens: int = 0
    passes: int = 0
    """Tokens times layers, those of drafts that were refused among them."""
    drafted: int = 0
    accepted: int = 0
    left: Counter[int] = field(default_factory=Counter)
    """Tokens by the number of layers after which they left."""

    @property
    def layers_per_token(self) -> float:
        """Layers computed for a token, mean."""
        return self.passes / max(self.tokens, 1)


class Foresight:
    """Self-speculative decoding: the full model's logits, several tokens at a time.

    `logits` are those of the token asked for, bit for bit what a Program gives, so that whoever chooses by them chooses
    the same; only tokens that were drafted come without a pass of their own.
    """

    def __init__(self, ladder: Ladder, draft: Draft, tally: Tally) -> None:
        self._ladder, self._draft, self._tally = ladder, draft, tally
        self.length, self.room = ladder.length, ladder.room
        self.logits: Tensor = ladder.logits[:1]
        self._begun = 0  # where the text stood at the last judgement
        self._read: list[int] = []  # the tokens that were read then and hold
        self._said: list[int] = []  # what follows each of them
        self._limit = READING - 1
        self._vain = self._resting = 0

    def __call__(self, token: int) -> int:
        """Read `token`, for which there must be room; the likeliest next one. It counts once `length` is raised."""
        at = self.length - self._begun
        if not (0 <= at < len(self._read) and self._read[at] == token):
            self._judge(token)
            at = 0
        self._tally.tokens += 1
        self.logits = self._ladder.logits[at : at + 1]
        return self._said[at]

    @property
    def state(self) -> State:
        """All that counts."""
        return self._ladder.state(self.length)

    def _judge(self, token: int) -> None:
        """Draft from `token` on, and let the other layers judge."""
        ladder, passes = self._ladder, self._ladder.passes
        self._read = []  # should this be interrupted
        ladder.cut(self.length)
        most = self._most()
        drafts = self._drafts(token, most)
        ladder.lift(ladder.num_layers, heads=len(drafts) + 1)
        said: list[int] = ladder.likeliest[: len(drafts) + 1].tolist()
        right = next((at for at, draft in enumerate(drafts) if draft != said[at]), len(drafts))
        self._begun, self._read, self._said = self.length, [token, *drafts[:right]], said
        if most:
            self._learn(len(drafts), right)
        tally = self._tally
        tally.drafted, tally.accepted = tally.drafted + len(drafts), tally.accepted + right
        tally.passes += ladder.passes - passes

    def _drafts(self, token: int, most: int) -> list[int]:
        """What the exit thinks will follow, as long as it is sure; all but a last unsure guess were read as far."""
        ladder, drafts = self._ladder, list[int]()
        ladder.enter(token, self._draft.layer, head=most > 0)
        while len(drafts) < most:
            guess, sure = ladder.guess()
            if sure < self._draft.confidence:
                break
            drafts.append(guess)
            ladder.enter(guess, self._draft.layer, head=len(drafts) < most)
        return drafts

    def _most(self) -> int:
        """Drafts worth making now, as far as there is room."""
        if self._resting:
            self._resting -= 1
            return 0
        most: int = min(self._limit, self.room - self.length - 1)
        return most

    def _learn(self, drafted: int, right: int) -> None:
        """Longer drafts where all were right, shorter ones where most were wrong; a rest where none ever is."""
        if drafted and right == drafted >= self._limit:
            self._limit = min(self._limit + READING, LONGEST)
        elif 2 * right < drafted:
            self._limit = max(self._limit - READING, READING - 1)
        self._vain = 0 if right else self._vain + 1
        if self._vain >= _IN_VAIN:
            self._vain, self._resting = _IN_VAIN // 2, _REST


class Leaving:
    """Early exit: a token goes no further than the first exit that is sure of the next one.

    What it skips is made up for together with others, when a later token goes deep (`exact`: every memory is what all
    layers would have remembered), or drawn from where it left (`propagated`: cheap, and not that).
    """

    def __init__(self, ladder: Ladder, setting: Setting, tally: Tally) -> None:
        self._ladder, self._setting, self._tally = ladder, setting, tally
        self.length, self.room = ladder.length, ladder.room
        self.logits: Tensor = ladder.logits[:1]

    def __call__(self, token: int) -> int:
        """Read `token`, for which there must be room; the likeliest next one. It counts once `length` is raised."""
        ladder, passes, word = self._ladder, self._ladder.passes, -1
        ladder.cut(self.length)
        if ladder.full:
            ladder.lift(ladder.num_layers)
        entered = False
        for layer, confidence in self._setting.leave:
            if entered:
                ladder.lift(layer, heads=1)
            else:
                ladder.enter(token, layer, head=True)
                entered = True
            word, sure = ladder.guess()
            if sure >= confidence:
                if self._setting.memory == "propagated":
                    ladder.remember()
                break
        else:
            layer = ladder.num_layers
            ladder.lift(layer, heads=1)
            word = int(ladder.likeliest[0])
        self._tally.tokens += 1
        self._tally.left[layer] += 1
        self._tally.passes += ladder.passes - passes
        return word

    @property
    def state(self) -> State:
        """All that counts; whoever waits passes the other layers now."""
        ladder, passes = self._ladder, self._ladder.passes
        ladder.cut(self.length)
        ladder.lift(ladder.num_layers)
        self._tally.passes += ladder.passes - passes
        return ladder.state(self.length)


EarlyProgram: TypeAlias = Foresight | Leaving


def early_program(
    model: Cortex,
    state: State,
    setting: Setting,
    draft: Draft | None,
    tally: Tally,
    trace: Callable[[Climb], None] | None = None,
) -> EarlyProgram:
    """One text's next tokens, for a model that is `writable` and `climbable`: who may leave early drafts nothing."""
    ladder = Ladder(model, state, setting, trace)
    if setting.leave or draft is None:
        return Leaving(ladder, setting, tally)
    return Foresight(ladder, draft, tally)


assert LONGEST < MOST, "a span holds a draft and the token before it"
