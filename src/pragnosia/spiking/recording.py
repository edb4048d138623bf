"""Recording: what a brain did, step by step, as arrays that a picture or a program can read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pragnosia.spiking.modulation import STRENGTHS, Levels, modulated
from pragnosia.spiking.regions import Brain, Currents
from pragnosia.spiking.running import run
from pragnosia.spiking.state import BrainState

EVERY = 10
"""Steps between two looks at the modulators."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Arrays; times are in steps of `dt_ms`."""

    dt_ms: NDArray[np.float64]
    regions: NDArray[np.str_]
    sizes: NDArray[np.int64]
    spike_steps: NDArray[np.int32]
    spike_neurons: NDArray[np.int32]
    """Of the whole network: regions follow each other."""
    counts: NDArray[np.int32]
    """(steps, regions) spikes."""
    traced: NDArray[np.int32]
    """Neurons whose membranes were watched."""
    membranes_mv: NDArray[np.float32]
    """(steps, traced), after each step."""
    modulators: NDArray[np.str_]
    levels: NDArray[np.float32]
    """(steps, modulators)."""

    def save(self, path: Path) -> None:
        """Write as .npz, whole or not at all."""
        temporary = path.with_name(f".{path.name}")
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(file, **{entry.name: getattr(self, entry.name) for entry in fields(self)})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def record(
    brain: Brain,
    state: BrainState,
    steps: int,
    *,
    levels: Levels | None = None,
    releases: Sequence[tuple[int, Mapping[str, float]]] = (),
    traced_per_region: int = 1,
    currents: Callable[[int], Currents] | None = None,
) -> tuple[Recording, BrainState]:
    """Run `steps` steps of one row and note everything; `releases` are (step, amounts by name) of modulators.

    `currents` says what comes from outside in a step.

    Raises what `run` raises.
    """
    names = list(brain.config.populations)
    watched = {name: min(traced_per_region, brain.region(name).config.size) for name in names}
    traced = [brain.first[name] + at for name in names for at in range(watched[name])]
    now = levels or Levels()
    counts, events, traces, told = [], [], [], []
    state, running = state.cloned(), brain
    for at in range(steps):
        for amounts in (amounts for step, amounts in releases if step == at):
            now = now.released(**amounts)
        if at % EVERY == 0:
            running = modulated(brain, now)
        given = None if currents is None else currents(at)
        activity, state = run(running, state, 1, given, events=True, consume=True)
        assert activity.events is not None
        counts.append(activity.counts[0, 0])
        events.append(torch.stack([torch.full_like(activity.events[:, 2], at), activity.events[:, 2]], 1))
        traces.append(torch.cat([state.populations[name].membranes.v[0, : watched[name]].float() for name in names]))
        told.append([getattr(now, name) for name in STRENGTHS])
        now = now.faded(brain.config.dt_ms) if releases else now
    spikes = torch.cat(events).numpy() if events else np.zeros((0, 2), np.int32)
    recording = Recording(
        dt_ms=np.array(brain.config.dt_ms),
        regions=np.array(names),
        sizes=np.array([region.config.size for region in brain.regions]),
        spike_steps=spikes[:, 0],
        spike_neurons=spikes[:, 1],
        counts=torch.stack(counts).numpy(),
        traced=np.array(traced, np.int32),
        membranes_mv=torch.stack(traces).numpy(),
        modulators=np.array(list(STRENGTHS)),
        levels=np.array(told, np.float32),
    )
    return recording, state
