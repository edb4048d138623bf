"""Batches: windows of packed text, shuffled by a seed, at a position that is part of a checkpoint.

Row r of a run is one window of T + 1 tokens: T inputs and the T tokens that follow them. Which window it is depends
on the corpus, the seed, T and r alone, so any batch can be read at once, and a run that is resumed sees the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from pragnosia.data import position
from pragnosia.data.corpus import Corpus, as_corpus
from pragnosia.data.curriculum import Curriculum, window_count
from pragnosia.data.permutation import mix, permute
from pragnosia.data.shards import TokenShards, TokenStream
from pragnosia.errors import DataError

# Rows after which the turns of the parts of a mixture repeat: weights are rounded to 1/1024.
_PERIOD = 1024


@dataclass(frozen=True)
class Place:
    """Which of `world_size` processes this is; each reads its own rows."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise DataError(f"rank is {self.rank}, expected 0 to {self.world_size - 1}")


class Batches:
    """An endless iterator of batches, (B, T + 1) each; `batch_size` rows for every process.

    Raises:
        DataError: impossible sizes, or a part with fewer than T + 1 tokens.
    """

    def __init__(
        self,
        data: TokenShards | Corpus,
        batch_size: int,
        sequence_length: int,
        seed: int,
        place: Place = Place(),
        curriculum: Curriculum | None = None,
    ) -> None:
        _check_positive(batch_size=batch_size, sequence_length=sequence_length)
        self.corpus = as_corpus(data)
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.seed = seed
        self.place = place
        self.row = 0  # the next one, over all processes
        self._turns = _Turns.by_weight(self.corpus.weights)
        self._mixed = self._unmixed = _Mixed(self.corpus.weights, 0, (0,) * len(self.corpus.parts))
        self._windows = [
            _Windows(part.train, sequence_length, int(mix(seed % 2**64, i)[0]), part.source)
            for i, part in enumerate(self.corpus.parts)
        ]
        self.curriculum = curriculum
        if curriculum is not None:
            curriculum.check([windows.count for windows in self._windows])

    def __iter__(self) -> Iterator[Int64[Tensor, "B T+1"]]:
        return self

    def __next__(self) -> Int64[Tensor, "B T+1"]:
        batch = self._read(self.row)
        self.row += self.batch_size * self.place.world_size
        return batch

    def batch(self, step: int) -> Int64[Tensor, "B T+1"]:
        """The batch of step 0, 1, …, wherever the iterator stands."""
        return self._read(step * self.batch_size * self.place.world_size)

    @property
    def epochs(self) -> tuple[float, ...]:
        """How often each part has been read so far."""
        rows = self._rows_by_part()
        return tuple(n / windows.count for n, windows in zip(rows, self._windows, strict=True))

    @property
    def last_parts(self) -> list[int]:
        """Which part each row of the batch that was read last came from."""
        first = self.row - self.batch_size * (self.place.world_size - self.place.rank)
        which, _ = self._turns.locate(np.arange(self.batch_size) + first - self._mixed.since)
        return [int(part) for part in which]

    @property
    def mix(self) -> tuple[float, ...]:
        """The shares in force."""
        return self._mixed.weights

    def remix(self, weights: Sequence[float]) -> None:
        """From the next row on, draw the parts by these shares, each where it was left; 0 rests. They sum to one."""
        if len(weights) != len(self.corpus.parts) or any(weight < 0 for weight in weights) or sum(weights) <= 0:
            raise DataError(f"the mix is {list(weights)}, of {len(self.corpus.parts)} parts; give each a share")
        if tuple(weights) != self._mixed.weights:
            self._mix(_Mixed(tuple(weights), self.row, tuple(self._rows_by_part())))

    def state_dict(self) -> dict[str, object]:
        """The position, and what it is a position in; JSON. Batch and world size may change, the rest may not."""
        mixed = {} if self._mixed == self._unmixed else self._mixed.written()
        return position.written(self.row, self._identity()) | mixed

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on where `state` was taken. Raises DataError where that was in other data, or in another order."""
        self.row = position.taken_up(state, self._identity())
        self._mix(_Mixed.taken_up(state, self._unmixed))

    def _mix(self, mixed: _Mixed) -> None:
        self._mixed, self._turns = mixed, _Turns.by_weight(mixed.weights)

    def _rows_by_part(self) -> list[int]:
        """How many rows came from each part so far."""
        since = self._turns.rows_by_part(self.row - self._mixed.since)
        return [before + now for before, now in zip(self._mixed.before, since, strict=True)]

    def _identity(self) -> dict[str, object]:
        return {
            "data": [part.digest for part in self.corpus.parts],
            "weights": list(self.corpus.weights),
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            **({} if self.curriculum is None else self.curriculum.identity()),
        }

    def _read(self, first_row: int) -> Int64[Tensor, "B T+1"]:
        rows = np.arange(self.batch_size) + first_row + self.place.rank * self.batch_size
        batch = np.empty((self.batch_size, self.sequence_length + 1), np.int64)
        which, nth = self._turns.locate(rows - self._mixed.since)
        nth = nth + np.array(self._mixed.before)[which]
        for part, windows in enumerate(self._windows):
            slots = np.flatnonzero(which == part)
            for slot, start in zip(slots, self._starts(part, rows[slots], nth[slots]), strict=True):
                batch[slot] = windows.stream.read(int(start), self.sequence_length + 1)
        return torch.from_numpy(batch)

    def _starts(self, part: int, rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the windows of these rows begin, which are the part's own `numbers`."""
        windows = self._windows[part]
        starts = windows.starts(numbers)
        if self.curriculum is None:
            return starts
        paced = rows < self.curriculum.pace.rows
        starts[paced] = self.curriculum.windows(part, rows[paced], windows.key) * self.sequence_length
        return starts


@dataclass(frozen=True)
class _Mixed:
    """The shares in force, the row since which they are, and the rows that each part had given before."""

    weights: tuple[float, ...]
    since: int
    before: tuple[int, ...]

    def written(self) -> dict[str, object]:
        """For a position."""
        return {"mix": [list(self.weights), self.since, list(self.before)]}

    @classmethod
    def taken_up(cls, state: Mapping[str, object], first: _Mixed) -> _Mixed:
        """From a position, which names none where it is the first. Raises DataError."""
        held: Any = state.get("mix")
        if held is None:
            return first
        try:
            weights, since, before = held
            made = cls(tuple(map(float, weights)), int(since), tuple(map(int, before)))
        except (TypeError, ValueError) as error:
            raise DataError(f"cannot resume: the mix of the data is {held!r}, expected shares and rows") from error
        return made


@dataclass(frozen=True)
class _Windows:
    """The windows of one stream in an endless order, every epoch shuffled anew and cut at another offset."""

    stream: TokenStream
    length: int
    key: int
    name: str
    count: int = field(init=False)
    slack: int = field(init=False)

    def __post_init__(self) -> None:
        tokens = self.stream.tokens
        if tokens < self.length + 1:
            raise DataError(
                f"{self.name} has {tokens} tokens to train on, a window needs {self.length + 1}; "
                "give more text or a shorter sequence length"
            )
        count = window_count(tokens, self.length)
        object.__setattr__(self, "count", count)
        object.__setattr__(self, "slack", min(self.length, tokens - count * self.length))

    def starts(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the windows of these numbers in the endless order begin."""
        epochs, within = np.divmod(numbers, self.count)
        keys = mix(self.key, epochs.astype(np.uint64))
        index = permute(within.astype(np.uint64), self.count, keys).astype(np.int64)
        offsets = (mix(keys, 1) % np.uint64(self.slack)).astype(np.int64)
        starts: NDArray[np.int64] = offsets + index * self.length
        return starts


@dataclass(frozen=True)
class _Turns:
    """Which part each row comes from: a short pattern, repeated, with every part spread evenly over it."""

    part: NDArray[np.int64]  # of each slot of the pattern
    earlier: NDArray[np.int64]  # slots before it that go to the same part
    counts: NDArray[np.int64]  # slots of each part

    @classmethod
    def by_weight(cls, weights: tuple[float, ...]) -> _Turns:
        period = 1 if len(weights) == 1 else _PERIOD
        shares = np.array(weights) * period
        counts = np.where(shares > 0, np.maximum(1, np.floor(shares).astype(np.int64)), 0)
        for _ in range(period - int(counts.sum())):  # largest remainders get what is left
            counts[np.argmax(shares - counts)] += 1
        part = np.repeat(np.arange(len(weights)), counts)
        earlier = np.concatenate([np.arange(n) for n in counts])
        order = np.argsort((earlier + 0.5) / counts[part], kind="stable")
        return cls(part[order], earlier[order], counts)

    def locate(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(part, number within that part) of each row."""
        cycle, slot = np.divmod(rows, len(self.part))
        part = self.part[slot]
        return part, cycle * self.counts[part] + self.earlier[slot]

    def rows_by_part(self, rows: int) -> list[int]:
        """How many of the first `rows` rows came from each part."""
        cycle, slot = divmod(rows, len(self.part))
        return [int(cycle * n + (self.part[:slot] == i).sum()) for i, n in enumerate(self.counts)]


def validation_batches(
    data: TokenShards | Corpus,
    batch_size: int,
    sequence_length: int,
    place: Place = Place(),
    *,
    max_batches: int | None = None,
) -> Iterator[Int64[Tensor, "B T+1"]]:
    """The validation text in order: of each part, every token but the first is a target exactly once.

    What is left at the end of a part comes as smaller batches, so weigh a batch by its targets. Processes take turns.
    """
    _check_positive(batch_size=batch_size, sequence_length=sequence_length)
    batches = (
        batch for part in as_corpus(data).parts for batch in _in_order(part.validation, batch_size, sequence_length)
    )
    for number, batch in enumerate(batches):
        if max_batches is not None and number >= max_batches:
            return
        if number % place.world_size == place.rank:
            yield batch


def shorten(batch: Int64[Tensor, "B T+1"], sequence_length: int) -> Int64[Tensor, "R t+1"]:
    """The same tokens in more and shorter rows: how a sequence-length warm-up leaves the order of the data alone."""
    length = batch.shape[1] - 1
    if sequence_length < 1 or length % sequence_length:
        raise DataError(f"rows of {length} tokens cannot be cut into rows of {sequence_length}; use a divisor")
    return batch.unfold(1, sequence_length + 1, sequence_length).reshape(-1, sequence_length + 1)


def _in_order(stream: TokenStream, batch_size: int, length: int) -> Iterator[Int64[Tensor, "B T+1"]]:
    whole, rest = divmod(max(0, stream.tokens - 1), length)
    for first in range(0, whole, batch_size):
        rows = range(first, min(first + batch_size, whole))
        yield torch.from_numpy(np.stack([stream.read(row * length, length + 1) for row in rows]))
    if rest:
        yield torch.from_numpy(stream.read(whole * length, rest + 1)[None])


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise DataError(f"{name} is {size}, expected at least 1")
