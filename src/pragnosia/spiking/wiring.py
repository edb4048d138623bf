"""Wiring: synapses drawn from a projection's few numbers, the same for the same seed on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pragnosia.spiking.configuration import BrainConfig, ProjectionConfig
from pragnosia.spiking.synapses import Synapses

Numbers = NDArray[np.int64]


def drawn(config: BrainConfig, number: int) -> Synapses:
    """The synapses of projection `number`: every target neuron has `fan_in` sources, itself never among them.

    A pair may be wired twice; where all are wired, each is once. Weights without a spread that nothing changes are one
    number for all.
    """
    projection = config.projections[number]
    chance = np.random.Generator(np.random.Philox(key=[config.seed, number]))
    source, target = _pairs(config, projection, chance)
    low, high = config.delay_steps(projection)
    delays = chance.integers(low, high + 1, len(target))
    if projection.mixed:
        weights = projection.weight * chance.standard_normal(len(target))
    else:
        weights = projection.weight * (1 + projection.spread * chance.uniform(-1, 1, len(target)))
    return laid_out(config, number, source, target, delays, weights)


def laid_out(
    config: BrainConfig, number: int, source: Numbers, target: Numbers, delays: Numbers, weights: Any
) -> Synapses:
    """Synapses given one by one, in order of their sources; delays in steps, weights signed."""
    projection = config.projections[number]
    population = config.populations[projection.target]
    slots = delays * population.receptor.channels * population.size + target
    if population.receptor.channels == 2:
        # a channel of its own for inhibition, whose conductance is no less positive
        slots, weights = slots + (weights < 0) * population.size, np.abs(weights)
    if projection.plasticity is None and len(weights) and (weights == weights[0]).all():
        weights = weights[:1]
    order = np.lexsort((slots, source))
    counts = np.bincount(source, minlength=config.populations[projection.source].size)
    return Synapses(
        torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)),
        torch.from_numpy(slots[order].astype(np.int32)),
        torch.from_numpy((weights[order] if len(weights) > 1 else weights).astype(np.float32)),
    )


def _pairs(config: BrainConfig, projection: ProjectionConfig, chance: np.random.Generator) -> tuple[Numbers, Numbers]:
    """Source and target of each synapse."""
    size, targets = config.populations[projection.source].size, config.populations[projection.target].size
    if projection.fan_in == "all":
        return np.tile(np.arange(size), targets), np.repeat(np.arange(targets), size)
    target = np.repeat(np.arange(targets), projection.fan_in)
    if projection.source != projection.target:
        return chance.integers(0, size, len(target)), target
    source = chance.integers(0, size - 1, len(target))
    return source + (source >= target), target
