"""Nearby: what followed where the model was in a like state, in the store or earlier in this text; how much it weighs.

    p_near(y) = sum_i [y_i = y] exp(c_i / tau) / sum_j exp(c_j / tau)          c: cosine of the states, nearest E
    p(y) = (1 - w_b) p(y) + w_b p_near(y)                                      b: the range that the largest c lies in

Each w_b is the running estimate of how often the neighbours were the better guess (one step of expectation
maximisation a token: w p_near / p), begun at PRIOR as if by COUNT tokens. It moves while text that was given is read,
never by the model's own words, so text that is nothing like what is stored ends up with weights near nothing.

Khandelwal et al. 2020 (kNN-LM), arXiv 1911.00172; Grave et al. 2017 (neural cache), arXiv 1612.04426.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pragnosia.inference.effort import Effort
from pragnosia.store.neighbours import Neighbours

NEAREST = 256
"""Neighbours that are asked."""
TAU = 0.06
RANGES = np.array([0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.995])
PRIOR, COUNT = 0.02, 50.0
_ROOM = 1024


@dataclass(frozen=True, eq=False)
class Guess:
    """What neighbours say comes next."""

    tokens: NDArray[np.int64]
    shares: NDArray[np.float64]
    """Summing to 1."""
    range: int
    weight: float
    nearest: float
    """The largest cosine."""


@dataclass(eq=False)
class Nearby:
    """The neighbours of one text's states: entries of a store, and with `cache` the text's own."""

    neighbours: Neighbours | None
    cache: bool
    width: int
    length: int = field(default=0, init=False)
    """Entries of this text."""

    def __post_init__(self) -> None:
        self._keys = np.zeros((_ROOM if self.cache else 0, self.width), np.float32)
        self._tokens = np.zeros(len(self._keys), np.int64)
        self._right = np.full(len(RANGES) + 1, PRIOR * COUNT)
        self._seen = np.full(len(RANGES) + 1, COUNT)

    @property
    def active(self) -> bool:
        """Whether there is anything that could be near."""
        return self.length > 0 or bool(self.neighbours is not None and len(self.neighbours))

    @property
    def effort(self) -> Effort:
        """Of one guess, as things are."""
        plain, halves = (0, 0) if self.neighbours is None else self.neighbours.compared
        return Effort.of_keys(self.width, plain=plain + self.length, halves=halves)

    def guess(self, state: NDArray[np.float32]) -> Guess | None:
        """For one state (D,)."""
        similarities: list[NDArray[np.float32]] = []
        tokens: list[NDArray[np.int64]] = []
        if self.neighbours is not None and len(self.neighbours):
            found = self.neighbours.search(state[None], NEAREST)
            there = found.tokens[0] >= 0
            similarities.append(found.similarities[0][there])
            tokens.append(found.tokens[0][there].astype(np.int64))
        if self.length:
            near = self._keys[: self.length] @ (state / max(float(np.linalg.norm(state)), 1e-12))
            kept = np.argpartition(-near, NEAREST)[:NEAREST] if self.length > NEAREST else np.arange(self.length)
            similarities.append(near[kept])
            tokens.append(self._tokens[kept])
        if not similarities:
            return None
        near, said = np.concatenate(similarities), np.concatenate(tokens)
        shares = np.exp((near - near.max()) / TAU).astype(np.float64)
        at = int(np.searchsorted(RANGES, near.max()))
        return Guess(said, shares / shares.sum(), at, float(self._right[at] / self._seen[at]), float(near.max()))

    def learn(self, guess: Guess, token: int, chance: float) -> None:
        """`token` came, which all else gave the probability `chance`."""
        by_near = float(guess.shares[guess.tokens == token].sum())
        mixed = (1 - guess.weight) * chance + guess.weight * by_near
        self._right[guess.range] += guess.weight * by_near / max(mixed, 1e-30)
        self._seen[guess.range] += 1

    def remember(self, states: NDArray[np.float32], tokens: NDArray[np.int64]) -> None:
        """States (N, D) of this text and what followed each; nothing is kept without a cache."""
        if not self.cache or not len(tokens):
            return
        end = self.length + len(tokens)
        if end > len(self._keys):
            room = max(end, 2 * len(self._keys))
            self._keys = np.concatenate([self._keys, np.zeros((room - len(self._keys), self.width), np.float32)])
            self._tokens = np.concatenate([self._tokens, np.zeros(room - len(self._tokens), np.int64)])
        lengths = np.linalg.norm(states, axis=1, keepdims=True)
        self._keys[self.length : end] = states / np.maximum(lengths, 1e-12)
        self._tokens[self.length : end] = tokens
        self.length = end

    def cut(self, length: int) -> None:
        """Forget what followed from there on; what followed the last token before it is not known yet."""
        self.length = min(self.length, max(0, length - 1))
