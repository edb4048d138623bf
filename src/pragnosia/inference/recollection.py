"""Recollection: what comes to mind while a text is read or said, as shares of the next token's probability.

    p(token) = (1 - sum s_i) p_model(token) + sum_i s_i [token_i = token]

A place in a lesson begins to be followed with the share

    s_i = exp(<w, f_i>) / (exp(b) + sum_j exp(<w, f_j>))          f: inference/lessons.py; w, b: inference/weights.py

and is followed on, token by token, as long as what is said agrees with it. By Bayes' rule what then speaks for it is

    s_i' = h s_i [token_i = y] / ((1 - sum s) p_model(y) + sum_j s_j [token_j = y])

so a rare word that was foretold settles which lesson is being told. h is the chance that telling goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pragnosia.inference.lessons import FEATURES, RECENT, Lesson, Lessons, Places
from pragnosia.inference.weights import BIAS, WEIGHTS

GOES_ON = 0.98
"""h"""
_LEAST = 1e-3  # a share worth keeping
_MOST = 0.995  # of all the probability, that lessons may have
_FOLLOWED = 8  # places at once

assert len(WEIGHTS) == len(FEATURES)


@dataclass(frozen=True, eq=False)
class Shares:
    """What would come, and how much it would weigh."""

    tokens: NDArray[np.int64]
    """(P,)"""
    shares: NDArray[np.float64]
    """(P,), summing to less than 1."""
    places: tuple[tuple[Lesson, int], ...] = ()
    """The entries they come from."""
    weighed: Places | None = None
    """Where beginning was weighed."""

    @property
    def total(self) -> float:
        """What is taken from the model."""
        return float(self.shares.sum())


NOTHING = Shares(np.zeros(0, np.int64), np.zeros(0))


@dataclass(eq=False)
class Recollection:
    """Of one text: what it calls to mind, token by token."""

    lessons: Lessons
    spoken: Callable[[Sequence[int]], str]
    """Ids as text."""
    _last: Shares = field(default=NOTHING, init=False)
    _by_model: NDArray[np.float32] | None = field(default=None, init=False)
    _length: int = field(default=-1, init=False)

    def shares(
        self, ids: Sequence[int], state: NDArray[np.float32], chances: NDArray[np.float32], *, asked: bool = False
    ) -> Shares:
        """What comes to mind behind `ids`: `state` (D,) is the model's, `chances` (V,) its log-probabilities.

        `asked`: they end a prompt.
        """
        followed = self._followed(ids)
        recent = ids[-RECENT:]
        places = self.lessons.places(self.spoken(recent), recent, state, asked=asked)
        self._last, self._by_model, self._length = _together(followed, places), chances, len(ids)
        return self._last

    def _followed(self, ids: Sequence[int]) -> list[tuple[Lesson, int, float]]:
        """Places that foretold the last token, one further, with what speaks for them."""
        last = self._last
        if self._by_model is None or len(ids) != self._length + 1 or not len(last.tokens):
            return []
        token = ids[-1]
        agree = last.tokens == token
        everything = (1 - last.total) * float(np.exp(self._by_model[token])) + float(last.shares[agree].sum())
        followed = []
        for at in np.flatnonzero(agree):
            lesson, position = last.places[at]
            if position + 1 < len(lesson.episode.surprises):
                followed.append((lesson, position + 1, GOES_ON * float(last.shares[at]) / max(everything, 1e-12)))
        return sorted(followed, key=lambda one: -one[2])[:_FOLLOWED]


def weighed(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """The shares (P,) of places with these features (P, F)."""
    scores = np.append(features @ WEIGHTS, BIAS)
    shares = np.exp(scores - scores.max())
    fresh: NDArray[np.float64] = (shares / shares.sum())[:-1]
    return fresh


def _together(followed: list[tuple[Lesson, int, float]], places: Places | None) -> Shares:
    """What is followed, and of the rest what begins."""
    kept: list[tuple[int, float, tuple[Lesson, int]]] = []
    for lesson, position, share in followed:
        kept.append((int(lesson.episode.tokens[position + 1]), share, (lesson, position)))
    if places is not None:
        left = 1 - min(sum(share for *_, share in followed), 1.0)
        fresh = left * weighed(places.features)
        for at in np.flatnonzero(fresh > _LEAST):
            place = places.lessons[places.lesson[at]], int(places.position[at])
            kept.append((int(places.tokens[at]), float(fresh[at]), place))
    shares = np.array([share for _, share, _ in kept], np.float64)
    shares *= min(1.0, _MOST / max(float(shares.sum()), 1e-12))
    return Shares(np.array([token for token, *_ in kept], np.int64), shares, tuple(place for *_, place in kept), places)
