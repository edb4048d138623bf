"""Rewiring in a run: between steps synapses die and grow (plasticity/synapses.py); moments and averages go along."""

from __future__ import annotations

from typing import Any

from torch import nn

from pragnosia.learning import LearningRule
from pragnosia.plasticity.synapses import RewiringConfig, rewire
from pragnosia.training.average import Average
from pragnosia.training.events import Event
from pragnosia.training.growing import follow
from pragnosia.training.optimisers import Optimisers


def rewired(
    config: RewiringConfig | None,
    model: nn.Module,
    rule: LearningRule,
    optimisers: Optimisers,
    average: Average | None,
    *,
    seed: int,
    step: int,
) -> list[Event]:
    """What happened after `step` steps; mostly nothing."""
    if config is None or step % config.every:
        return []
    mind: Any = model
    change, died = rewire(mind, config, seed=seed, step=step)
    follow(change, model, rule, optimisers, average)
    synapses = mind.brain.num_synapses
    return [
        Event(
            step=step,
            what="rewire",
            reason=f"every {config.every} steps",
            detail=f"{died:,} of {synapses:,} synapses died, as many grew",
            births=died,
            deaths=died,
            parameters=(change.total_before, change.total_after),
        )
    ]
