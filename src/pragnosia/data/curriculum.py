"""Curricula: easy text first, harder text as a run grows competent. An order of the data; what is learned stays.

    competence(r) = min(1, (start^p + (1 - start^p) r / R)^(1/p))     r of the R rows of the pace; p = 1 or 2

Row r is drawn evenly from the easiest share competence(r) of all windows; from row R on every window comes once an
epoch, as without a curriculum. Platanios et al. 2019, arXiv 1903.09848, eq. 5-7. A window's difficulty is the mean over
its tokens of

    length       ln of the tokens of the document it stands in
    frequency    -ln of the token's share of the text, its rarity (eq. 2)
    loss         a model's, which is computed where models are (training/curriculum.py)

Which window a row is depends on the text, the difficulties, the seed and r alone, so a resumed run sees the same rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pragnosia.data.permutation import mix
from pragnosia.data.shards import TokenShards, TokenStream
from pragnosia.errors import DataError

Difficulties = NDArray[np.float32]
_BLOCK = 1024  # windows read at once


@dataclass(frozen=True)
class Pace:
    """How fast competence grows: from `start` over `rows` rows, by the root of order `power`."""

    rows: int
    start: float = 0.01
    power: int = 2

    def competence(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The share of the windows, easiest first, that each row is drawn from."""
        first = self.start**self.power
        grown: NDArray[np.float64] = np.minimum(1.0, first + (1 - first) * rows / max(1, self.rows))
        return np.asarray(grown ** (1 / self.power))


@dataclass(frozen=True)
class Curriculum:
    """What comes first, for every part of a corpus."""

    by: str
    pace: Pace
    difficulties: tuple[Difficulties, ...]
    """Of each part's windows, in the order of the text."""

    @cached_property
    def orders(self) -> tuple[NDArray[np.int64], ...]:
        """Of each part, its windows from the easiest to the hardest."""
        return tuple(np.argsort(values, kind="stable") for values in self.difficulties)

    def identity(self) -> dict[str, object]:
        """For a checkpoint: what must be equal for the rows to be equal."""
        digest = hashlib.sha256(b"".join(values.astype("<f4").tobytes() for values in self.difficulties))
        pace = [self.pace.rows, self.pace.start, self.pace.power]
        return {"curriculum": [self.by, *pace, digest.hexdigest()]}

    def check(self, counts: list[int]) -> None:
        """Raise DataError where the difficulties are of other windows."""
        found = [len(values) for values in self.difficulties]
        if found != counts:
            raise DataError(f"the curriculum knows {found} windows, the text has {counts}; make it for this text")

    def windows(self, part: int, rows: NDArray[np.int64], key: int) -> NDArray[np.int64]:
        """Which window each row within the pace is."""
        order = self.orders[part]
        reach = np.maximum(1, np.ceil(self.pace.competence(rows) * len(order))).astype(np.uint64)
        drawn = mix(key, rows.astype(np.uint64), 3) % reach
        return order[drawn.astype(np.int64)]


def blocks(stream: TokenStream, length: int, count: int) -> Iterator[NDArray[np.int64]]:
    """The first `count` windows of `length` tokens, some at a time, (N, T)."""
    for first in range(0, count, _BLOCK):
        some = min(_BLOCK, count - first)
        yield stream.read(first * length, some * length).reshape(some, length)


def by_length(part: TokenShards, length: int, count: int) -> Difficulties:
    """Mean log length of the documents that a window's tokens stand in."""
    ends = [
        np.flatnonzero(block.ravel() == part.separator) + at * _BLOCK * length
        for at, block in enumerate(blocks(part.train, length, count))
    ]
    edges = np.concatenate([[-1], *ends, [part.train.tokens - 1]])
    sizes = np.log(np.maximum(1, np.diff(edges)))
    found = []
    for at, block in enumerate(blocks(part.train, length, count)):
        places = np.arange(block.size) + at * _BLOCK * length
        found.append(sizes[np.searchsorted(edges[1:-1], places)].reshape(block.shape).mean(1))
    return np.concatenate(found).astype(np.float32)


def by_frequency(part: TokenShards, length: int, count: int) -> Difficulties:
    """Mean rarity of a window's tokens."""
    seen = np.zeros(part.vocab_size, np.int64)
    for block in blocks(part.train, length, count):
        seen += np.bincount(block.ravel(), minlength=len(seen))[: len(seen)]
    rarity = -np.log(np.maximum(seen, 1) / max(1, seen.sum()))
    return np.concatenate([rarity[block].mean(1) for block in blocks(part.train, length, count)]).astype(np.float32)


MEASURES: dict[str, Callable[[TokenShards, int, int], Difficulties]] = {"length": by_length, "frequency": by_frequency}


def window_count(tokens: int, length: int) -> int:
    """Windows of `length` tokens and the one that follows, of a stream of so many."""
    return max(1, (tokens - length) // length)
