"""The picture of a recording: spikes by region, rates, modulators, membranes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pragnosia.measure.pictures import COOL, INK, LEAF, SOFT, WARM, save, style
from pragnosia.spiking.recording import Recording

COLOURS = (COOL, WARM, LEAF, INK, SOFT, "#bc6c25", "#6d597a", "#457b9d")
MOST_DOTS = 200_000
FEW_DOTS = 20_000
"""Of fewer, each is drawn larger than a pixel."""
SMOOTHED_MS = 20.0
MEMBRANE_SPACING = 1.4
"""Of the largest swing of a membrane."""


def draw(recording: Recording, path: Path) -> None:
    """Write the picture, whole or not at all."""
    figure = Figure(figsize=(11, 11), layout="constrained")
    spikes, rates, levels, membranes = figure.subplots(4, 1, sharex=True, height_ratios=(5, 2, 1.3, 2.5))
    _spikes(recording, spikes)
    _rates(recording, rates)
    _levels(recording, levels)
    _membranes(recording, membranes)
    save(figure, path)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _spikes(recording: Recording, axes: Axes) -> None:
    edges = np.concatenate([[0], np.cumsum(recording.sizes)])
    every = max(1, -(-len(recording.spike_steps) // MOST_DOTS))
    steps, neurons = recording.spike_steps[::every], recording.spike_neurons[::every]
    times, dot = steps * float(recording.dt_ms), "." if len(steps) < FEW_DOTS else ","
    for number in range(len(recording.regions)):
        inside = (neurons >= edges[number]) & (neurons < edges[number + 1])
        axes.plot(times[inside], neurons[inside], dot, color=_colour(number), alpha=0.6, markersize=3)
    axes.set_yticks((edges[:-1] + edges[1:]) / 2, [str(name) for name in recording.regions])
    axes.set_ylim(edges[-1], 0)
    shown = "spikes" if every == 1 else f"one of {every} spikes"
    style(axes, f"{shown}, {edges[-1]:,} neurons", "", "")
    axes.grid(visible=False)


def _rates(recording: Recording, axes: Axes) -> None:
    dt_ms = float(recording.dt_ms)
    width = max(1, min(round(SMOOTHED_MS / dt_ms), len(recording.counts) // 5))  # a few words are few steps
    times = (np.arange(len(recording.counts) - width + 1) + width / 2) * dt_ms
    for number, name in enumerate(recording.regions):
        each = recording.counts[:, number] / recording.sizes[number] / dt_ms * 1000
        smooth = np.convolve(each, np.full(width, 1 / width), mode="valid")
        axes.plot(
            times, smooth, "." if len(smooth) == 1 else "-", color=_colour(number), linewidth=1.2, label=str(name)
        )
    style(axes, f"rate, mean of {width * dt_ms:g} ms", "", "Hz")
    axes.legend(ncols=3, fontsize=7.5, frameon=False, loc="upper right")


def _levels(recording: Recording, axes: Axes) -> None:
    times = np.arange(len(recording.levels)) * float(recording.dt_ms)
    for number, name in enumerate(recording.modulators):
        axes.plot(times, recording.levels[:, number], color=_colour(number), linewidth=1.2, label=str(name))
    style(axes, "modulators, 1 at rest", "", "level")
    axes.legend(ncols=4, fontsize=7.5, frameon=False, loc="upper right")


def _membranes(recording: Recording, axes: Axes) -> None:
    times = np.arange(len(recording.membranes_mv)) * float(recording.dt_ms)
    edges = np.cumsum(recording.sizes)
    apart = MEMBRANE_SPACING * max(float(np.ptp(recording.membranes_mv)), 1.0)
    for number, neuron in enumerate(recording.traced):
        region = int(np.searchsorted(edges, neuron, side="right"))
        trace = recording.membranes_mv[:, number] - apart * number
        axes.plot(times, trace, color=_colour(region), linewidth=0.8)
    names = [str(recording.regions[np.searchsorted(edges, neuron, side="right")]) for neuron in recording.traced]
    axes.set_yticks([-apart * number for number in range(len(names))], names)
    style(axes, "membranes", "ms", "")
