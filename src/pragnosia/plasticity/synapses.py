"""Synapses of a spiking model that die and grow: the weakest go, and each that goes makes room for one.

    of every projection that is not a matrix, each look:   die     the `share` with the least |w|
                                                           grow    as many, to the same targets, from sources drawn anew

So a neuron listens to as many others as its `fan_in` says, before and after, and a model has never more synapses than
its wiring. A newborn is as strong as its projection draws its weights, times `newborn`; where nothing strengthens it,
it may be among the weakest at the next look. After Bellec et al. 2018,
arXiv 1711.05136 (DEEP R), where who changes sign dies.

What is drawn hangs on the seed, the step and the projection alone: a run that is resumed draws the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pragnosia.errors import ConfigError
from pragnosia.model.bank import NEWBORN
from pragnosia.plasticity.origin import Axis, Change, Origin
from pragnosia.spiking.neurogen import NeuroGenForCausalLM
from pragnosia.spiking.neurogen_configuration import NeuroGenConfig
from pragnosia.spiking.wires import is_matrix


@dataclass(frozen=True, kw_only=True)
class RewiringConfig:
    """How often synapses die and grow, and how many."""

    every: int = 100
    """Steps between two looks."""
    share: float = 0.02
    """Of a projection's synapses, at each look."""
    newborn: float = 0.5
    """Strength of a newborn, in that of its projection."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"rewiring.every is {self.every}; it must be at least 1")
        if not 0 < self.share < 1:
            raise ConfigError(f"rewiring.share is {self.share}; it must lie between 0 and 1")
        if not self.newborn > 0:
            raise ConfigError(f"rewiring.newborn is {self.newborn}; it must be greater than 0")

    def check(self, shape: Any, rule: str) -> None:
        """Raise ConfigError for a model that has no synapses to rewire, or a rule that leaves them as they are."""
        if not isinstance(shape, NeuroGenConfig):
            raise ConfigError(f"rewiring is for spiking models, this is of kind {shape.model_type}; leave it out")
        if not shape.plastic:
            raise ConfigError("rewiring: model.plastic is false, so that no synapse is weaker than it was drawn")
        if rule == "delta":
            raise ConfigError("rewiring: the rule delta leaves synapses as they are; take another, or leave it out")
        if all(is_matrix(one) for one in shape.wired.projections):
            raise ConfigError("rewiring: every projection wires all pairs; give one a fan_in, or leave it out")


@torch.no_grad()
def rewire(mind: NeuroGenForCausalLM, config: RewiringConfig, *, seed: int, step: int) -> tuple[Change, int]:
    """Let the weakest synapses of every projection die and others grow; what became of whom, and how many died."""
    origins, died = {}, 0
    total = sum(weight.numel() for weight in mind.parameters())
    for number, one in enumerate(mind.wires):
        wires: Any = one
        if wires.is_matrix:
            continue
        source = _rewired(mind, wires, config, np.random.Generator(np.random.Philox(key=[seed, (step << 16) + number])))
        died += int((source == NEWBORN).sum())
        there = torch.from_numpy(source)
        origins[f"wires.{number}.weight"] = Origin(f"wires.{number}.weight", (Axis(0, there, there),))
    after = mind.config.to_dict()
    return Change("rewire", after, after, total, total, origins, seed), died


def _rewired(mind: Any, wires: Any, config: RewiringConfig, chance: np.random.Generator) -> Any:
    """Change one projection in place; for each synapse now, which it was before, NEWBORN if it was not."""
    wired = mind.config.wired
    one = wired.projections[wires.number]
    size, targets = wired.populations[one.source].size, wired.populations[one.target].size
    starts, slots, weights = (part.cpu().numpy() for part in (wires.starts, wires.slots, wires.weight.detach().float()))
    slots, weights = slots.copy(), weights.copy()
    source = np.repeat(np.arange(size), np.diff(starts))
    dead = np.argsort(np.abs(weights), kind="stable")[: round(config.share * len(weights))]
    target = slots[dead] % targets
    if one.source == one.target:
        born = chance.integers(0, size - 1, len(dead))
        source[dead] = born + (born >= target)
    else:
        source[dead] = chance.integers(0, size, len(dead))
    low, high = wired.delay_steps(one)
    slots[dead] = chance.integers(low, high + 1, len(dead)) * targets + target
    factor = chance.standard_normal(len(dead)) if one.mixed else 1 + one.spread * chance.uniform(-1, 1, len(dead))
    weights[dead] = config.newborn * one.weight * factor
    before = np.arange(len(weights))
    before[dead] = NEWBORN
    order = np.lexsort((slots, source))
    counts = np.bincount(source, minlength=size)
    for tensor, now in (
        (wires.starts, np.concatenate([[0], np.cumsum(counts)])),
        (wires.slots, slots[order]),
        (wires.weight, weights[order]),
    ):
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(now)))
    return before[order]
