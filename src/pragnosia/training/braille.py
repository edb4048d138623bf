"""Curves and bars in a terminal, of characters alone.

A braille character holds 2 x 4 dots, so a curve of W x H characters has 2 W x 4 H places; a bar has eight heights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of the left and the right column, from above
_EMPTY, _BARS = 0x2800, " ▁▂▃▄▅▆▇█"


def curve(points: Sequence[tuple[float, float]], width: int, height: int) -> list[str]:
    """`height` lines of `width` characters through points (x in [0, 1] from the left, y), which come in order of x.

    Points that share a column are drawn as their mean, columns between two points on the line that joins them.
    """
    columns: dict[int, list[float]] = {}
    for x, y in points:
        if math.isfinite(y):
            columns.setdefault(place(x, 2 * width), []).append(y)
    means = [(column, sum(values) / len(values)) for column, values in columns.items()]
    cells = [[_EMPTY] * width for _ in range(height)]
    if not means:
        return ["".join(map(chr, row)) for row in cells]
    low, high = min(y for _, y in means), max(y for _, y in means)
    scale = (4 * height - 1) / (high - low) if high > low else 0.0
    before: int | None = None
    for x, y in _joined(means):
        dot = round((high - y) * scale)
        # a steep piece is drawn through, so that the curve stays one
        start = dot if before is None else before + (dot > before) - (dot < before)
        for each in range(min(start, dot), max(start, dot) + 1):
            cells[each // 4][x // 2] |= _DOTS[x % 2][each % 4]
        before = dot
    return ["".join(map(chr, row)) for row in cells]


def _joined(means: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """Every column from the first to the last."""
    for (x, y), (further, then) in pairwise(means):
        for column in range(x, further):
            yield column, y + (then - y) * (column - x) / (further - x)
    yield means[-1]


def bars(loads: Sequence[float], width: int, full: float = 2.0) -> str:
    """As many characters per value as `width` holds; their height is the value's share of `full`, blank is nothing."""
    drawn = _means(loads, width)
    wide = max(1, min(4, width // max(1, len(drawn))))
    heights = (0 if value <= 0 else max(1, min(8, round(8 * value / full))) for value in drawn)
    return "".join(_BARS[height] * wide for height in heights)


def place(x: float, places: int) -> int:
    """Which of so many places x in [0, 1] falls on."""
    return max(0, min(places - 1, int(x * places)))


def _means(values: Sequence[float], places: int) -> list[float]:
    """At most `places` values, each the mean of its neighbours."""
    if len(values) <= places:
        return list(values)
    edges = [len(values) * at // places for at in range(places + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
