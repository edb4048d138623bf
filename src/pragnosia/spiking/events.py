"""Tokens through a brain by events: the compiled step, without slopes, touching only synapses of who spiked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pragnosia.kernels import spikes as kernel
from pragnosia.spiking.fires import Fires
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.running import run
from pragnosia.spiking.state import BrainState


def takes_events(state: BrainState) -> bool:
    """Whether the compiled step runs here."""
    return kernel.supports(*(one.membranes.v for one in state.populations.values()))


def by_events(
    brain: Brain, into: Sequence[str], drive: Float[Tensor, "T B I"], state: BrainState, *, steps: int = 1
) -> tuple[Fires, BrainState]:
    """Who fired in each token, and the state then; `drive` as for `unroll`."""
    names, counts = tuple(brain.config.populations), []
    state = state.cloned()
    for now in drive.detach():
        currents = as_currents(brain, into, now)
        activity, state = run(brain, state, steps, currents, tally=names, consume=True)
        counts.append(torch.cat([activity.tally[name] for name in names], 1))
    return Fires.listed(counts), state


def as_currents(brain: Brain, into: Sequence[str], drive: Float[Tensor, "B I"]) -> dict[str, Float[Tensor, "B N"]]:
    """Currents that add `drive` to the membranes in each step: a membrane settles towards its current."""
    found, at = {}, 0
    for name in into:
        config = brain.region(name).config
        gain = 1 / -math.expm1(-brain.config.dt_ms / config.neuron.tau_ms)  # type: ignore[union-attr]
        found[name] = drive[:, at : at + config.size] * gain
        at += config.size
    return found
