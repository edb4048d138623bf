"""The house's look in pictures: its colours, plain axes, and a file that is written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter

from pragnosia.units import format_count

INK, SOFT, WARM, COOL, LEAF = "#22223b", "#9a8c98", "#c1440e", "#2a6f97", "#588157"
FORMATS = ("png", "svg", "pdf", "jpg", "jpeg", "webp")
"""As what a picture can be written: what its name ends in."""


def save(figure: Figure, path: Path) -> None:
    """Write a figure as what its name ends in, one of FORMATS, whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    try:
        figure.savefig(temporary, dpi=130, format=path.suffix[1:].lower())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@final
class Apart(Formatter):
    """Ticks as people write quantities, with as many digits as it takes to tell each from the next."""

    def __init__(self, written: Callable[[float, int], str]) -> None:
        self.written = written

    def __call__(self, x: float, pos: int | None = None) -> str:
        """One alone."""
        return self.written(x, 3)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """All of an axis."""
        for digits in range(3, 12):
            told = [self.written(float(value), digits) for value in values]
            if len(set(told)) == len(told):
                break
        return told


def style(axes: Axes, title: str, x: str, y: str) -> None:
    """The house's look: no box, a faint grid, the title where reading starts."""
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel(x, color=SOFT, fontsize=9)
    axes.set_ylabel(y, color=SOFT, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d0cdd4")
    axes.grid(color="#eceaf0", linewidth=0.8)
    axes.set_axisbelow(True)
    if x == "tokens":
        axes.xaxis.set_major_formatter(lambda value, _: format_count(value))
    axes.tick_params(colors=SOFT, labelsize=8.5)
