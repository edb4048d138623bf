"""Tuning rows: which stretches of which examples share a row of `sequence_length` tokens.

Best fit, longest first: each stretch goes into the row that it leaves the least room in, a new one where none has
enough. At most 11/9 of the fewest rows possible and four more; Johnson et al. 1974, doi:10.1137/0203025.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pragnosia.data.tuning_examples import IGNORED, TuningExamples
from pragnosia.errors import DataError


@dataclass(frozen=True)
class Stretches:
    """The parts (begin, end) of the examples' tokens that are learned from, none longer than a row."""

    bounds: NDArray[np.int64] = field(repr=False)  # (number of stretches, 2)
    learned: NDArray[np.int64] = field(repr=False)  # tokens, of each: never the first, which nothing comes before
    num_split: int = 0  # texts that go on in another stretch
    num_cut: int = 0  # conversations whose end does not fit
    num_dropped: int = 0  # conversations of which no learned token fits
    tokens_lost: int = 0  # learned ones among those that do not fit

    @classmethod
    def of(cls, examples: TuningExamples, sequence_length: int) -> Stretches:
        """Cut what is longer than `sequence_length`: texts go on in a next stretch, conversations keep their beginning.

        A text is what is learned from its second token to its last. Stretches of one share a token, the last of one
        and the first of the next, so that each is learned once.

        Raises:
            DataError: no learned token fits.
        """
        before = np.concatenate([[0], np.cumsum(examples.labels != IGNORED)])  # learned tokens before each place
        begins, ends = examples.offsets[:-1], examples.offsets[1:]
        learned = before[ends] - before[np.minimum(begins + 1, ends)]
        fits = (ends - begins <= sequence_length) & (learned > 0)
        bounds = [np.stack([begins[fits], ends[fits]], axis=1)]
        split = cut = 0
        for number in np.flatnonzero(~fits & (learned > 0)):
            begin, end = int(begins[number]), int(ends[number])
            if learned[number] == end - begin - 1:
                firsts = np.arange(begin, end - 1, sequence_length - 1)
                bounds.append(np.stack([firsts, np.minimum(firsts + sequence_length, end)], axis=1))
                split += 1
            elif before[begin + sequence_length] > before[begin + 1]:
                bounds.append(np.array([[begin, begin + sequence_length]]))
                cut += 1
        kept = np.concatenate(bounds)
        if not len(kept):
            raise DataError(
                f"none of {len(examples)} conversations has an answer within its first {sequence_length} tokens; "
                "use a longer sequence length"
            )
        counts = before[kept[:, 1]] - before[kept[:, 0] + 1]
        dropped = len(examples) - int(fits.sum()) - split - cut
        return cls(kept, counts, split, cut, dropped, int(learned.sum() - counts.sum()))

    def told(self, sequence_length: int) -> str | None:
        """One line on what did not fit; None where all did."""
        if not self.num_cut and not self.num_dropped:
            return None
        return (
            f"longer than {sequence_length} tokens: {self.num_cut} conversations lose their end, {self.num_dropped} "
            f"are dropped whole; {self.tokens_lost} tokens of answers are lost, a longer sequence length keeps them"
        )


def packed(lengths: NDArray[np.int64], room: int) -> list[list[int]]:
    """Rows of the numbers of `lengths`, none of which is above `room`; the sum of no row is."""
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = defaultdict(list)  # by the room that is left in them
    rooms: list[int] = []  # the keys of it, ascending
    for number in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[number])
        at = bisect_left(rooms, length)
        if at == len(rooms):
            left, row = room, len(rows)
            rows.append([])
        else:
            left = rooms[at]
            row = open_rows[left].pop()
            if not open_rows[left]:
                del rooms[at], open_rows[left]
        rows[row].append(number)
        left -= length
        if left:
            if left not in open_rows:
                insort(rooms, left)
            open_rows[left].append(row)
    return rows
