"""A seeded permutation of 0..n-1 that is computed where it is asked, never stored.

The numbers are laid out as a table of a rows and b columns (a b >= n); a few rounds of
    row <- row + hash(column) mod a,    column <- column + hash(row) mod b
shuffle the table, a Feistel network; a number that lands outside 0..n-1 goes round again (cycle walking).
Black and Rogaway 2002, doi:10.1007/3-540-45760-7_9.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 4
_Words = NDArray[np.uint64]


def mix(*words: _Words | int) -> _Words:
    """A well-spread 64-bit hash of each tuple of words (the finaliser of SplitMix64, Steele et al. 2014)."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = state ^ np.asarray(word, np.uint64)
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def permute(numbers: _Words, n: int, keys: _Words) -> _Words:
    """Where each of `numbers` (all below n) stands in the permutation that its key names."""
    rows = np.uint64(math.isqrt(n - 1) + 1)
    columns = np.uint64(-(-n // int(rows)))
    result = _shuffle(numbers, rows, columns, keys)
    while (outside := result >= n).any():
        result[outside] = _shuffle(result[outside], rows, columns, keys[outside])
    return result


def _shuffle(numbers: _Words, rows: np.uint64, columns: np.uint64, keys: _Words) -> _Words:
    row, column = numbers // columns, numbers % columns
    for turn in range(_ROUNDS):
        row = (row + mix(keys, column, 2 * turn) % rows) % rows
        column = (column + mix(keys, row, 2 * turn + 1) % columns) % columns
    shuffled: _Words = row * columns + column
    return shuffled
