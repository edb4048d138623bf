"""Tuning batches: rows of several examples each, shuffled by a seed, at a position that is part of a checkpoint.

Every example has its own positions from 0 and its own segment, so that none is seen from another. A caller makes the
attention mask of a batch with `segment_mask`:

    mask[b, 0, i, j] = segments[b, i] == segments[b, j] and j <= i
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy.typing import NDArray
from torch import Tensor

from pragnosia.data import position
from pragnosia.data.batches import Place
from pragnosia.data.permutation import mix, permute
from pragnosia.data.tuning_examples import IGNORED, TuningExamples
from pragnosia.data.tuning_rows import Stretches, packed
from pragnosia.errors import DataError


@dataclass(frozen=True)
class TuningBatch:
    """Rows to learn from; labels stand where their token does, and the model shifts them itself."""

    input_ids: Int64[Tensor, "B T"]
    labels: Int64[Tensor, "B T"]  # -100 where nothing is learned: prompts, the first token of a segment, padding
    position_ids: Int64[Tensor, "B T"]  # from 0 in every segment
    segments: Int64[Tensor, "B T"]  # from 1 in every row; 0 is padding


def segment_mask(segments: Int64[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """Which place j each place i may look at: those of its own segment up to itself.

    Padding is a segment like the others: it looks at padding alone, for a place that may look nowhere is not a number.
    """
    same = segments[:, :, None] == segments[:, None, :]
    return same.tril()[:, None]


class TuningBatches:
    """An endless iterator of batches of `batch_size` rows for every process; all rows, shuffled anew, every epoch.

    Rows are packed once, best fit and longest first (see tuning_rows), so an epoch has the same number of them each
    time; without `packing` every example has a row of its own. `stretches` says what did not fit.

    Raises:
        DataError: impossible sizes, or no example with a learned token that fits.
    """

    def __init__(
        self,
        examples: TuningExamples,
        batch_size: int,
        sequence_length: int,
        seed: int,
        packing: bool = True,
        *,
        place: Place | None = None,
    ) -> None:
        for name, size, least in (("batch_size", batch_size, 1), ("sequence_length", sequence_length, 2)):
            if size < least:
                raise DataError(f"{name} is {size}, expected at least {least}")
        self.examples = examples
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.seed = seed
        self.packing = packing
        self.place = place or Place()
        self.row = 0  # the next one, over all processes
        self.stretches = Stretches.of(examples, sequence_length)
        lengths = self.stretches.bounds[:, 1] - self.stretches.bounds[:, 0]
        rows = packed(lengths, sequence_length) if packing else [[number] for number in range(len(lengths))]
        self._members = np.fromiter(chain.from_iterable(rows), np.int64, len(lengths))
        self._offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        self._key = int(mix(seed % 2**64)[0])

    def __iter__(self) -> Iterator[TuningBatch]:
        return self

    def __next__(self) -> TuningBatch:
        first = self.row + self.place.rank * self.batch_size
        batch = self._read(self._shuffled(np.arange(first, first + self.batch_size)))
        self.row += self.batch_size * self.place.world_size
        return batch

    def one_epoch(self) -> Iterator[TuningBatch]:
        """Every row once, unshuffled, the last batch smaller where it must be: for validation. Processes take turns."""
        for number, first in enumerate(range(0, self.rows_per_epoch, self.batch_size)):
            if number % self.place.world_size == self.place.rank:
                yield self._read(np.arange(first, min(first + self.batch_size, self.rows_per_epoch)))

    @property
    def rows_per_epoch(self) -> int:
        return len(self._offsets) - 1

    @property
    def epochs(self) -> float:
        """How often the rows have been read so far."""
        return self.row / self.rows_per_epoch

    @property
    def tokens(self) -> int:
        """Read in an epoch, padding left out."""
        return int(np.diff(self.stretches.bounds).sum())

    @property
    def tokens_learned(self) -> int:
        """Labels in an epoch."""
        return int(self.stretches.learned.sum())

    def state_dict(self) -> dict[str, object]:
        """The position, and what it is a position in; JSON. Batch and world size may change, the rest may not."""
        return position.written(self.row, self._identity())

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on where `state` was taken. Raises DataError where that was in other data, or in another order."""
        self.row = position.taken_up(state, self._identity())

    def _identity(self) -> dict[str, object]:
        return {
            "data": self.examples.digest,
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "packing": self.packing,
        }

    def _shuffled(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows that stand at `numbers` in the endless order."""
        epochs, within = np.divmod(numbers, self.rows_per_epoch)
        keys = mix(self._key, epochs.astype(np.uint64))
        return permute(within.astype(np.uint64), self.rows_per_epoch, keys).astype(np.int64)

    def _read(self, rows: NDArray[np.int64]) -> TuningBatch:
        shape = (len(rows), self.sequence_length)
        ids, labels = np.full(shape, self.examples.pad_id, np.int64), np.full(shape, IGNORED, np.int64)
        positions, segments = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for slot, row in enumerate(rows):
            members = self._members[self._offsets[row] : self._offsets[row + 1]]
            to = 0
            for segment, (begin, end) in enumerate(self.stretches.bounds[members], 1):
                at = slice(to, to := to + int(end - begin))
                ids[slot, at] = self.examples.ids[begin:end]
                labels[slot, at] = self.examples.labels[begin:end]
                labels[slot, at.start] = IGNORED  # nothing of its own example comes before it
                positions[slot, at] = np.arange(end - begin)
                segments[slot, at] = segment
        return TuningBatch(*map(torch.from_numpy, (ids, labels, positions, segments)))
