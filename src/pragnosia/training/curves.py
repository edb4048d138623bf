"""Curves: a run in one picture.

Bits per byte over tokens; the rate and the gradient; units awake; and which units do the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pragnosia.measure.pictures import COOL, INK, LEAF, SOFT, WARM, save, style
from pragnosia.training.log import Record

Load = Sequence[Sequence[float]]


def draw_run(records: Sequence[Record], load: Load, path: Path, title: str) -> None:
    """Write the picture of a run; `load` is each sparse layer's share of work per unit, or empty."""
    figure = Figure(figsize=(11, 7.5) if load else (11, 4), layout="constrained", facecolor="white")
    axes = figure.subplots(2 if load else 1, 2, squeeze=False)
    draw_loss(axes[0][0], records)
    draw_rate(axes[0][1], records)
    if load:
        _awake(axes[1][0], records)
        _heat(axes[1][1], load)
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold")
    save(figure, path)


def series(records: Sequence[Record], key: str, over: str = "tokens") -> tuple[list[Any], list[Any]]:
    """Two columns of the records that have both."""
    rows = [(record[over], record[key]) for record in records if key in record and over in record]
    return [row[0] for row in rows], [row[1] for row in rows]


def draw_loss(axes: Axes, records: Sequence[Record]) -> None:
    """Bits per byte over tokens, of the training text and of the held-out text."""
    style(axes, "What is left to learn", "tokens", "bits per byte")
    axes.plot(*series(records, "bits_per_byte"), color=COOL, alpha=0.55, linewidth=1.2, label="training")
    x, y = series(records, "validation_bits_per_byte")
    axes.plot(x, y, color=WARM, linewidth=1.8, marker="o", markersize=3.5, label="held out")
    if y:
        last = (x[-1], y[-1])
        axes.annotate(f"{y[-1]:.3f}", last, (6, 0), textcoords="offset points", va="center", color=WARM)
        axes.margins(x=0.08)
    axes.legend(frameon=False, fontsize=9)


def draw_rate(axes: Axes, records: Sequence[Record]) -> None:
    """Learning rate and gradient over tokens."""
    style(axes, "How it was taught", "tokens", "learning rate")
    axes.plot(*series(records, "learning_rate"), color=LEAF, linewidth=1.6)
    right = axes.twinx()
    right.plot(*series(records, "gradient_norm"), color=SOFT, alpha=0.6, linewidth=0.9)
    right.set_yscale("log")
    right.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.yaxis.set_minor_formatter(lambda value, _: f"{value:.1g}")
    right.set_ylabel("gradient norm", color=SOFT, fontsize=9)
    right.spines[["top", "left", "right", "bottom"]].set_visible(False)
    right.tick_params(colors=SOFT, labelsize=8.5, which="both")


def _awake(axes: Axes, records: Sequence[Record]) -> None:
    style(axes, "Who wakes", "tokens", "units awake per token and layer")
    axes.plot(*series(records, "units_awake"), color=COOL, linewidth=1.6)
    axes.set_ylim(bottom=0)
    right = axes.twinx()
    right.plot(*series(records, "load_entropy"), color=LEAF, linewidth=1.2)
    right.set_ylim(0, 1.02)
    right.set_ylabel("evenness of load (entropy / maximum)", color=LEAF, fontsize=9)
    right.spines[["top", "left", "right", "bottom"]].set_visible(False)
    right.tick_params(colors=SOFT, labelsize=8.5)


def _heat(axes: Axes, load: Load) -> None:
    widest = max(len(layer) for layer in load)
    # Relative to an even share, each layer's units from the busiest to the idlest.
    table = [sorted((share * len(layer) for share in layer), reverse=True) for layer in load]
    table = [row + [float("nan")] * (widest - len(row)) for row in table]
    image = axes.imshow(table, aspect="auto", cmap="magma", vmin=0, vmax=2, interpolation="nearest")
    axes.set_title("Work per unit, against an even share", loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel("units, busiest first", color=SOFT, fontsize=9)
    axes.set_ylabel("sparse layer", color=SOFT, fontsize=9)
    axes.set_yticks(range(len(load)))
    axes.tick_params(colors=SOFT, labelsize=8.5)
    axes.spines[:].set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.85)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=SOFT, labelsize=8.5)
