"""Labels beside the points of a line, none over another: each in the place around its point that covers least."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.path import Path
from matplotlib.transforms import Bbox

from pragnosia.measure.pictures import INK, SOFT

_AWAY = (6, 14, 24, 36, 50, 66)  # points of type from what is labelled
_SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
_MARK = 4  # pixels around a point or a text that no other text covers


def label(axes: Axes, line: Sequence[tuple[float, float]], texts: Sequence[str]) -> None:
    """Write beside each point of a line, over no other text and no point; what must stand away has a thin line there.

    After all else is drawn: what is added to the axes later may lie under a label.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # nothing moves any more
    centres = [(float(x), float(y)) for x, y in axes.transData.transform(list(line))]
    taken = _Taken(axes.get_window_extent(), centres, figure.dpi / 72)
    for number, (point, text) in enumerate(zip(line, texts, strict=True)):
        told = axes.annotate(text, point, (0, 0), textcoords="offset points", color=INK, fontsize=8.5)
        away, across, up = place = taken.best(number, told.get_window_extent())
        told.set_position((across * away, up * away))
        told.set(ha=("right", "center", "left")[across + 1], va=("top", "center", "bottom")[up + 1])
        if taken.take(number, place, told.get_window_extent()):
            thin = {"arrowstyle": "-", "color": SOFT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            axes.annotate("", point, (across * away, up * away), textcoords="offset points", arrowprops=thin)


class _Taken:
    """What no text may lie over, in pixels; a place is how far from a point, and on which side of it."""

    def __init__(self, frame: Bbox, centres: Sequence[tuple[float, float]], scale: float) -> None:
        self.frame, self.centres, self.scale = frame, centres, scale
        self.line, self.leads = Path(centres), list[Path]()
        self.points = [Bbox.from_extents(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in centres]
        self.texts: list[Bbox] = []

    def best(self, number: int, size: Bbox) -> tuple[int, int, int]:
        """Where the text of a point covers least; of equals the nearest."""
        places = ((away, across, up) for away in _AWAY for across, up in _SIDES)
        return min(places, key=lambda place: self._cost(number, place, size))

    def take(self, number: int, place: tuple[int, int, int], box: Bbox) -> bool:
        """A text stands there; whether a line must say whose it is."""
        self.texts.append(box.padded(_MARK))
        led = place[0] > _AWAY[0] or not self._nearest(number, box)
        if led:
            self.leads.append(self._lead(number, place))
        return led

    def _cost(self, number: int, place: tuple[int, int, int], size: Bbox) -> int:
        box, lead = self._box(number, place, size), self._lead(number, place)
        outside = box.x0 < self.frame.x0 or box.x1 > self.frame.x1
        outside |= box.y0 < self.frame.y0 or box.y1 > self.frame.y1
        covered = box.count_overlaps([*self.texts, *self.points])
        crossed = sum(lead.intersects_bbox(text, filled=False) for text in self.texts)
        crossed += sum(other.intersects_bbox(box, filled=False) for other in self.leads)
        unclear: int = self.line.intersects_bbox(box, filled=False) + (not self._nearest(number, box))
        return int(10 * (2 * outside + covered + crossed) + 3 * unclear)

    def _nearest(self, number: int, box: Bbox) -> bool:
        """Whether no other point is nearer to it."""
        middle = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        far = [math.dist(middle, centre) for centre in self.centres]
        return far[number] <= min(far) + _MARK

    def _box(self, number: int, place: tuple[int, int, int], size: Bbox) -> Bbox:
        away, across, up = place
        x, y = self.centres[number]
        left = x + across * away * self.scale - (1 - across) / 2 * size.width
        bottom = y + up * away * self.scale - (1 - up) / 2 * size.height
        return Bbox.from_bounds(left, bottom, size.width, size.height)

    def _lead(self, number: int, place: tuple[int, int, int]) -> Path:
        away, across, up = place
        x, y = self.centres[number]
        return Path([(x, y), (x + across * away * self.scale, y + up * away * self.scale)])
