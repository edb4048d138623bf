"""Tokens through a brain by events: the compiled step, without slopes, touching only synapses of who spiked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pragnosia.kernels import spikes as kernel
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.running import run
from pragnosia.spiking.state import BrainState


def takes_events(state: BrainState) -> bool:
    """Whether the compiled step runs here."""
    return kernel.supports(*(one.membranes.v for one in state.populations.values()))


def by_events(
    brain: Brain, into: Sequence[str], drive: Float[Tensor, "T B I"], state: BrainState, *, steps: int = 1
) -> tuple[Float[Tensor, "T B N"], BrainState]:
    """Spikes of each neuron in each token, and the state then; `drive` as for `unroll`."""
    regions = [brain.region(name) for name in into]
    parts = drive.detach().split([region.config.size for region in regions], -1)
    # a current settles towards itself: so much of it for what it is to add in one step
    gains = [1 / -math.expm1(-brain.config.dt_ms / region.config.neuron.tau_ms) for region in regions]  # type: ignore[union-attr]
    names, counts = tuple(brain.config.populations), []
    state = state.cloned()
    for at in range(len(drive)):
        currents = {name: part[at] * gain for name, part, gain in zip(into, parts, gains, strict=True)}
        activity, state = run(brain, state, steps, currents, tally=names, consume=True)
        counts.append(torch.cat([activity.tally[name] for name in names], 1))
    return torch.stack(counts).to(drive.dtype), state
