"""Mixing: a model's next token and what memory says of it, as one distribution.

lessons (recollection.py) come first, neighbours (nearby.py) share in what they leave, the model has the rest

Lessons are believed as far as they came true. While given text is scored, their shares s are multiplied by

    trust = (C + sum_t r_t) / (C + sum_t sum_i s_ti)        r_t: how likely a lesson said token t, by Bayes' rule

one step of expectation maximisation a token, begun at 1 as if by C tokens. What a model itself says teaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pragnosia.inference.effort import Effort
from pragnosia.inference.lessons import Lessons
from pragnosia.inference.nearby import Guess, Nearby
from pragnosia.inference.recollection import NOTHING, Recollection, Shares
from pragnosia.store.episodes import EpisodicStore
from pragnosia.store.neighbours import Neighbours

Head: TypeAlias = Callable[[Tensor], Tensor]
_LESSON = 256  # states of a piece of a prompt that neighbours are judged by
_FLOOR = 1e-30
_TRUSTED = 4.0
"""C"""


class Mixes(Protocol):
    """What a decoder and a scorer of text ask of who shares in the next token. `ids` are a text's tokens so far."""

    asked: bool

    def heard(self, ids: Sequence[int], states: Float[Tensor, "N D"], start: int, head: Head) -> None:
        """Given text, whose states are those of ids[start : start + N]."""

    def mix(self, ids: Sequence[int], state: Float[Tensor, " D"], logits: Float[Tensor, "1 V"]) -> Float[Tensor, "1 V"]:
        """Log-probabilities of the token behind `ids`."""

    def follows(self, state: Float[Tensor, " D"], token: int) -> None:
        """The model's own word."""

    def score(
        self, ids: Sequence[int], states: Float[Tensor, "N D"], logits: Float[Tensor, "N V"]
    ) -> NDArray[np.float64]:
        """ln p of the last N of `ids`."""

    def cut(self, length: int) -> None:
        """The text goes on differently from there."""

    def effort(self) -> Effort:
        """Since this was last asked."""


@dataclass(eq=False)
class Mixing:
    """Of one text. `ids` are always all of its tokens so far."""

    recollection: Recollection | None
    nearby: Nearby
    asked: bool = field(default=False, init=False)
    """Whether a prompt has just been read."""
    shares: Shares = field(default=NOTHING, init=False)
    """Of the last token: what lessons had to say."""
    guess: Guess | None = field(default=None, init=False)
    _effort: Effort = field(default=Effort(), init=False)
    _came: float = field(default=_TRUSTED, init=False)
    _promised: float = field(default=_TRUSTED, init=False)

    @property
    def trust(self) -> float:
        """In lessons, by what they foretold of this text."""
        return min(1.0, self._came / self._promised)

    def effort(self) -> Effort:
        """What recalling cost since this was last asked."""
        done, self._effort = self._effort, Effort()
        return done

    def heard(self, ids: Sequence[int], states: Float[Tensor, "N D"], start: int, head: Head) -> None:
        """A given text's states, those of ids[start : start + N], and what makes logits of them.

        Neighbours are judged by what really followed, and a cache remembers it.
        """
        after = np.array(ids[start + 1 : start + 1 + len(states)], np.int64)
        known = _plain(states[: len(after)])
        judged = known[-_LESSON:] if self.nearby.active else known[:0]
        if len(judged):
            chances = head(states[: len(after)][-_LESSON:]).float().log_softmax(-1).cpu().numpy()
            width, vocabulary = judged.shape[1], chances.shape[1]
            each = states.element_size() * width * vocabulary  # the head, once for all of them
            self._effort += Effort(2.0 * len(judged) * width * vocabulary, each)
            for state, token, row in zip(judged, after[-_LESSON:], chances, strict=True):
                guess = self._guessed(state)
                if guess is not None:
                    self.nearby.learn(guess, int(token), float(np.exp(row[token])))
        self.nearby.remember(known, after)

    def mix(self, ids: Sequence[int], state: Float[Tensor, " D"], logits: Float[Tensor, "1 V"]) -> Float[Tensor, "1 V"]:
        """Log-probabilities of the token behind `ids`, where the model is in `state` and gives `logits`."""
        here = _plain(state)
        chances = logits[0].float().log_softmax(-1).cpu().numpy()
        mixed = self._mixed(ids, here, chances)
        if mixed is None:
            return logits
        return torch.from_numpy(np.log(np.maximum(mixed, _FLOOR)).astype(np.float32))[None].to(logits.device)

    def follows(self, state: Float[Tensor, " D"], token: int) -> None:
        """The model's own word behind `state`: a cache keeps it, no weight moves."""
        self.nearby.remember(_plain(state)[None], np.array([token], np.int64))

    @torch.inference_mode()
    def score(
        self, ids: Sequence[int], states: Float[Tensor, "N D"], logits: Float[Tensor, "N V"]
    ) -> NDArray[np.float64]:
        """ln p of the last N of `ids`, each by what was before it; neighbours learn and remember as they go."""
        scores = np.zeros(len(states))
        here = _plain(states)
        chances = logits.float().log_softmax(-1).cpu().numpy()
        first = len(ids) - len(states)
        for at in range(len(states)):
            before, token = ids[: first + at], ids[first + at]
            mixed = self._mixed(before, here[at], chances[at])
            scores[at] = chances[at][token] if mixed is None else np.log(max(float(mixed[token]), _FLOOR))
            if self.guess is not None:
                self.nearby.learn(self.guess, token, self._without_neighbours(token, chances[at]))
            if mixed is not None and self.shares.total:
                told = self.trust * self._told(token)
                self._came += told / max(float(mixed[token]), _FLOOR)
                self._promised += self.shares.total
            self.nearby.remember(here[at][None], np.array([token], np.int64))
        return scores

    def _mixed(self, ids: Sequence[int], state: NDArray[np.float32], chances: NDArray[np.float32]) -> Any:
        """Probabilities (V,); None where nothing comes to mind."""
        self.shares = NOTHING
        if self.recollection is not None:
            self.shares = self.recollection.shares(ids, state, chances, asked=self.asked)
        self.asked = False
        if self.shares.weighed is not None:
            keys = sum(len(lesson.keys) for lesson in self.shares.weighed.lessons)
            self._effort += Effort.of_keys(len(state), plain=keys, products=2)
        self.guess = self._guessed(state) if self.nearby.active else None
        if not len(self.shares.tokens) and self.guess is None:
            return None
        self._effort += Effort(num_bytes=8.0 * len(chances))
        near = 0.0 if self.guess is None else self.guess.weight
        trust = self.trust
        left = 1 - trust * self.shares.total
        mixed = np.exp(chances.astype(np.float64)) * (left * (1 - near))
        if self.guess is not None:
            np.add.at(mixed, self.guess.tokens, left * near * self.guess.shares)
        np.add.at(mixed, self.shares.tokens, trust * self.shares.shares)
        return mixed

    def _guessed(self, state: NDArray[np.float32]) -> Guess | None:
        self._effort += self.nearby.effort
        return self.nearby.guess(state)

    def _without_neighbours(self, token: int, chances: NDArray[np.float32]) -> float:
        """What the model and lessons gave a token."""
        left = 1 - self.trust * self.shares.total
        return left * float(np.exp(chances[token])) + self.trust * self._told(token)

    def _told(self, token: int) -> float:
        """The share of lessons that foretold it."""
        return float(self.shares.shares[self.shares.tokens == token].sum())

    def cut(self, length: int) -> None:
        """The text goes on differently from there."""
        self.nearby.cut(length)


@dataclass(eq=False)
class Memories:
    """An open store made ready for one model: begun anew for every text."""

    store: EpisodicStore | None
    tokenizer: Any
    width: int

    def __post_init__(self) -> None:
        self._lessons: Lessons | None = None
        self._neighbours: Neighbours | None = None
        self._version: Any = None

    def mixing(self, *, cache: bool = False) -> Mixing | None:
        """For a new text; None where nothing could come to mind."""
        recollection = None
        if self.store is not None and self.store.version[0]:
            recollection = Recollection(self.lessons, self.spoken)
        if recollection is None and not cache:
            return None
        return Mixing(recollection, Nearby(self.neighbours if recollection else None, cache, self.width))

    @property
    def lessons(self) -> Lessons:
        """What is called to mind by words, as the store is now."""
        assert self.store is not None
        self._renew()
        if self._lessons is None:
            self._lessons = Lessons(self.store)
        return self._lessons

    @property
    def neighbours(self) -> Neighbours:
        """What is near, as the store is now."""
        assert self.store is not None
        self._renew()
        if self._neighbours is None:
            self._neighbours = Neighbours(self.store)
        return self._neighbours

    def spoken(self, ids: Sequence[int]) -> str:
        """Ids as text."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _renew(self) -> None:
        version = None if self.store is None else self.store.version
        if version != self._version:
            self._lessons = self._neighbours = None
            self._version = version


def _plain(states: Tensor) -> NDArray[np.float32]:
    plain: NDArray[np.float32] = states.detach().float().cpu().numpy()
    return plain
