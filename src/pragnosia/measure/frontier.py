"""The frontier: how well a model predicts a text at some settings of the energy dial, what that costs, and how fast.

Quality and cost are those of the text, each of its tokens as if it were decoded alone; speed is that of greedy decoding
behind its first words, and joules are of that, too, where the machine counts them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pragnosia.errors import PromptError
from pragnosia.inference.decode import Decoder
from pragnosia.inference.sampling import Sampling
from pragnosia.measure.accounting import Account
from pragnosia.measure.dial import figures
from pragnosia.measure.energy import energy_model
from pragnosia.measure.evaluation import Evaluation
from pragnosia.measure.labels import label
from pragnosia.measure.meter import EnergyMeter
from pragnosia.measure.pictures import COOL, INK, WARM, Apart, save, style
from pragnosia.model.cortex import Cortex
from pragnosia.model.setting import Setting
from pragnosia.units import format_bytes, format_count, format_joules

SPOKEN = 48
"""Tokens that are said to time a setting; the first third warms up."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One energy: quality on a text, and what a token costs that is decoded, one text at a time."""

    energy: float | str
    setting: Setting
    """What it stands for."""
    bits_per_byte: float
    operations_per_token: float
    bytes_per_token: float
    joules_per_token: float
    joules_source: str
    tokens_per_second: float
    units_awake: float
    """Per token and layer, mean over the layers that have units; 0 where none has."""
    layers_used: float
    """Per token: those it passed, mean over the text."""
    decoding: str
    """What computed single tokens: `modules`, `compiled` or `leaving early`."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


def point(
    model: Cortex, counted: Account, ids: Sequence[int], energy: float | str, setting: Setting, read: Evaluation
) -> Point:
    """From an evaluation at this setting, and from greedy decoding behind `ids`; `counted` is the model's account."""
    decoder = Decoder(model, len(ids) + SPOKEN + 1, setting)
    decoder.read(list(ids))
    moments, warm, joules = [], SPOKEN // 3, None
    with EnergyMeter() as meter:
        for _ in decoder.speak(SPOKEN, Sampling()):
            moments.append(time.perf_counter())
            if len(moments) == warm + 1:
                joules = meter.read()
    spoken = len(moments) - 1 - warm
    if spoken < 1:
        raise PromptError(f"the model ended after {len(moments)} tokens, too few to time; give another text")
    used = meter.measured if joules else None
    found = figures(setting, read, counted, energy_model(device=model.device.type))
    if used and joules:
        found["joules_per_token"] = (used.joules - joules.joules) / spoken
    return Point(
        energy=energy,
        joules_source=used.source if used else "model",
        tokens_per_second=spoken / max(moments[-1] - moments[warm], 1e-9),
        decoding=decoder.decoding,
        **found,
    )


def draw_frontier(points: Sequence[Point], path: Path, title: str) -> None:
    """Quality over operations, bytes, joules and speed; each point says its energies."""
    ordered = sorted(points, key=lambda one: one.joules_per_token)
    named = dict[Setting, list[str]]()
    for one in ordered:
        named.setdefault(one.setting, []).append(f"{one.energy}")
    shown = list({one.setting: one for one in ordered}.values())
    names = [", ".join(dict.fromkeys(named[one.setting])) for one in shown]
    figure = Figure(figsize=(11, 7.5), layout="constrained", facecolor="white")
    panels = [
        ("operations_per_token", "operations per token", format_count),
        ("bytes_per_token", "bytes per token", format_bytes),
        ("joules_per_token", "joules per token", format_joules),
        ("tokens_per_second", "tokens per second, decoding", format_count),
    ]
    for axes, (key, what, written) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        style(axes, f"Quality over {what}", what, "bits per byte")
        x, y = [getattr(one, key) for one in shown], [one.bits_per_byte for one in shown]
        axes.plot(x, y, color=COOL, linewidth=1.2, alpha=0.6)
        axes.plot(x, y, color=WARM, linestyle="", marker="o", markersize=5)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(Apart(written))
        axes.margins(0.12)
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold")
    for axes, (key, _, _) in zip(figure.axes, panels, strict=True):
        label(axes, [(getattr(one, key), one.bits_per_byte) for one in shown], names)
    save(figure, path)
