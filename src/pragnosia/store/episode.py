"""Episode: one lesson as it was lived. What it says, when and from where it came, and what the model thought of it.

keys[i], surprises[i]: of the state behind tokens[i]; what it is to bring back is tokens[i + 1]
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

KEY = np.dtype("<f2")
"""A key's numbers as they lie on disk."""
TOKEN = np.dtype("<i4")
LONGEST = 1 << 16
"""Tokens of an episode, at most: where in it an entry lies is a number of 16 bits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """A lesson of T tokens, which are T - 1 entries."""

    text: str
    tokens: NDArray[np.int32]
    """(T,)"""
    starts: NDArray[np.int32]
    """(T,) where in the text each token begins, in characters."""
    keys: NDArray[np.float16]
    """(T - 1, D)"""
    surprises: NDArray[np.float16]
    """(T - 1,) -ln p of each next token as it was read [nats]."""
    source: str = ""
    taught: float = field(default_factory=time.time)
    """When, in seconds since 1970; the last time, where it was taught again."""
    repetitions: int = 1
    consolidated: bool = False
    """Whether the model knows it by itself. Asked for in writing; of one that was read the store knows."""
    id: int = 0
    """0: not written yet."""

    def __post_init__(self) -> None:
        count = len(self.tokens)
        assert 2 <= count <= LONGEST, "an episode has a token, and one that follows"
        assert self.keys.shape[0] == len(self.surprises) == count - 1
        assert len(self.starts) == count

    @property
    def width(self) -> int:
        """D, of its keys."""
        return int(self.keys.shape[1])

    @property
    def surprise(self) -> float:
        """Mean over its entries [nats]."""
        return float(self.surprises.astype(np.float32).mean())

    @property
    def digest(self) -> bytes:
        """What makes two lessons the same: their text."""
        return text_digest(self.text)

    @property
    def nbytes(self) -> int:
        """About what it takes on disk: its arrays, its text twice (as it is, and its words), a row's head."""
        arrays = self.tokens.nbytes + self.starts.nbytes + self.keys.nbytes + self.surprises.nbytes
        return arrays + 2 * len(self.text.encode()) + 128


def text_digest(text: str) -> bytes:
    """Of a text, white space at its ends left out."""
    return hashlib.sha256(text.strip().encode()).digest()[:16]


def worth(surprise: float, repetitions: int, age_days: float) -> float:
    """What an episode is worth keeping: surprise (1 + ln repetitions) / (1 + age / 30 days).

    What surprised little the model knows already; what was taught again matters; what is old and was never said again
    goes first. Where room is short the least of these is forgotten.
    """
    return (surprise + 1e-3) * (1 + math.log(max(repetitions, 1))) / (1 + max(age_days, 0.0) / 30)
