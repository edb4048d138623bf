"""What a comparison came to: numbers, a table for people, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from pragnosia.measure.pictures import COOL, INK, SOFT, WARM, save, style
from pragnosia.training.curves import series
from pragnosia.training.log import Record
from pragnosia.units import format_count, format_joules


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over seeds."""

    mean: float
    std: float
    """Of the sample; 0 for a single seed."""
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value per seed."""
        spread = stdev(values) if len(values) > 1 else 0.0
        return cls(mean=mean(values), std=spread, min=min(values), max=max(values))


@dataclass(frozen=True, kw_only=True)
class ArmReport:
    """One arm."""

    name: str
    dense: bool
    total_parameters: int
    active_parameters: int
    operations_per_token: int
    """Of one forward pass; training does about three times as many."""
    joules_per_token: float
    """Of one generated token, by `energy_model`."""
    learning_rate: float
    sweep: dict[str, float]
    """Held-out bits per byte of the short runs, by learning rate."""
    loss: Spread
    bits_per_byte: Spread
    against_dense: Spread | None
    """Difference in bits per byte, seed by seed; below 0 is better than the dense arm."""
    tokens_per_second: Spread


@dataclass(frozen=True, kw_only=True)
class CompareReport:
    """All arms."""

    out: str
    seeds: int
    steps: int
    tokens: int
    energy_model: str
    arms: list[ArmReport]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> list[str]:
        """For people, line by line."""
        table = Table(box=None, pad_edge=False, header_style="")
        for heading in _HEADINGS:
            table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
        for arm in self.arms:
            table.add_row(*_cells(arm))
        console = Console(file=StringIO(), width=200, color_system=None)
        console.print(table)
        lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
        how = f"{format_count(self.tokens)} tokens each, {self.seeds} seeds: mean ± standard deviation."
        what = f"Operations and joules are those of one token, forward; joules by the model {self.energy_model}."
        return [*lines, "", how, what, f"Everything in {self.out}."]


_HEADINGS = (
    "arm",
    "bits/byte",
    "against dense",
    "loss",
    "parameters",
    "active",
    "operations",
    "tokens/s",
    "joules",
    "rate",
)


def _cells(arm: ArmReport) -> tuple[str, ...]:
    against = arm.against_dense
    return (
        arm.name,
        f"{arm.bits_per_byte.mean:.4f} ± {arm.bits_per_byte.std:.4f}",
        "" if against is None else f"{against.mean:+.4f} ± {against.std:.4f}",
        f"{arm.loss.mean:.3f}",
        format_count(arm.total_parameters),
        format_count(arm.active_parameters),
        format_count(arm.operations_per_token),
        f"{arm.tokens_per_second.mean:.0f}",
        format_joules(arm.joules_per_token),
        f"{arm.learning_rate:.2g}",
    )


def draw(report: CompareReport, runs: Mapping[str, Sequence[Sequence[Record]]], path: Path) -> None:
    """Held-out curves of every arm with the range over seeds, and where each ends against its operations."""
    figure = Figure(figsize=(11, 4.6), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    style(left, "Held-out text over training", "tokens", "bits per byte")
    style(right, "What a token costs, what it buys", "operations per token", "bits per byte")
    colours = [COOL, WARM, "#588157", "#6d597a", "#b08968", SOFT]
    for number, arm in enumerate(report.arms):
        colour = INK if arm.dense else colours[number % len(colours)]
        curves = [series(records, "validation_bits_per_byte") for records in runs[arm.name]]
        x, columns = curves[0][0], list(zip(*(y for _, y in curves), strict=True))
        left.plot(x, [mean(column) for column in columns], color=colour, linewidth=1.8, label=arm.name)
        left.fill_between(
            x, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.18, linewidth=0
        )
        end = arm.bits_per_byte
        size = 40 + 160 * arm.total_parameters / max(other.total_parameters for other in report.arms)
        bars = [[end.mean - end.min], [end.max - end.mean]]
        right.errorbar(arm.operations_per_token, end.mean, yerr=bars, color=colour, capsize=3, linewidth=1.2)
        right.scatter(arm.operations_per_token, end.mean, s=size, color=colour, alpha=0.85, zorder=3)
        right.annotate(arm.name, (arm.operations_per_token, end.mean), (9, 5), textcoords="offset points", color=colour)
    right.margins(0.25)
    right.xaxis.set_major_formatter(lambda value, _: format_count(value))
    left.legend(frameon=False, fontsize=9)
    figure.suptitle("area: total parameters", x=0.99, ha="right", color=SOFT, fontsize=8.5)
    save(figure, path)
