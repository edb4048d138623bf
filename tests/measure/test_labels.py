"""Labels beside a line: none lies over another, over a point or outside, however near the points are."""

from __future__ import annotations

import itertools
import math

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from pragnosia.measure.labels import label

SPREAD = [(1.0, 2.6), (2.0, 2.2), (4.0, 2.1)]
NEAR = [*SPREAD, (3.98, 2.1003), (3.97, 2.101), (2.01, 2.2), (2.0, 2.2001), (1.0, 2.6)]


@pytest.mark.parametrize(("line", "panels"), [(SPREAD, 2), (NEAR, 1), (NEAR[:1], 1)], ids=["three", "eight", "one"])
def test_nothing_is_covered(line: list[tuple[float, float]], panels: int) -> None:
    figure = Figure(figsize=(5.5 * panels, 3.75 * panels), layout="constrained")
    for axes in figure.subplots(panels, panels, squeeze=False).flat:
        axes.plot(*zip(*line, strict=True))
        axes.margins(0.12)
    names = [f"0.{number}, draft" for number in range(len(line))]
    for axes in figure.axes:
        label(axes, line, names)
    figure.draw_without_rendering()
    for axes in figure.axes:
        told = [text for text in axes.texts if text.get_text()]
        assert [text.get_text() for text in told] == names
        boxes = [Text.get_window_extent(text) for text in told]
        frame = axes.get_window_extent()
        for box in boxes:
            assert frame.x0 <= box.x0 < box.x1 <= frame.x1
            assert frame.y0 <= box.y0 < box.y1 <= frame.y1
            assert not any(box.contains(*place) for place in axes.transData.transform(line))
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_what_stands_away_has_a_line_to_its_point() -> None:
    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    axes.plot([1, 2], [1, 2])
    line = [(1.5, 1.5)] * 9
    label(axes, line, [f"energy {number}" for number in range(9)])
    leads = [text for text in axes.texts if not text.get_text()]
    away = [text for text in axes.texts if text.get_text() and math.hypot(*text.get_position()) > 9]
    assert len(leads) == len(away) > 0
    assert {tuple(text.xy) for text in leads} == {(1.5, 1.5)}
