"""Growing: what a run does when its model has changed its structure between two steps.

    change = add_units(model, 8)                             a verb of plasticity: the model has another shape
    follow(change, model, rule, optimisers, average)         moments, averages and schedules go along
    … every step, after rule.settle:  settle(model, optimisers)          the newborn wake
    awaken(model, optimisers)        once, where a run begins: who sleeps since `pragnosia grow` is a newborn too

Both are deterministic, so that every process of a distributed run that does the same stays equal to the others; what
wraps a model must be made anew. They act between optimiser steps: gradients that were being accumulated are gone. What
a checkpoint needs beyond the weights' own file is in the optimisers' state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pragnosia.inference.loading import load_config
from pragnosia.learning import LearningRule
from pragnosia.measure.accounting import account
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.plasticity.growth import DEPTH
from pragnosia.plasticity.origin import Change
from pragnosia.plasticity.transplant import shapes
from pragnosia.training.average import Average
from pragnosia.training.newborns import ADULT
from pragnosia.training.optimisers import Optimisers, embedded_in

WOKEN = 1e-3
"""What is left of the depth of a newborn's sleep after `optimiser.newborn_steps` steps."""


def follow(
    change: Change, model: nn.Module, rule: LearningRule, optimisers: Optimisers, average: Average | None = None
) -> None:
    """Let optimisers and averages go along with a change that was just made to `model`. Raises ConfigError."""
    learners = list(rule.changes(model))
    optimisers.follow(change, learners, embedded_in(model))
    if average is not None:
        average.follow(change, learners)


@torch.no_grad()
def settle(model: Any, optimisers: Optimisers) -> None:
    """Let newborn units wake a little more: their balance comes closer to the least of the grown-up's."""
    ages = optimisers.newborns.ages
    if not ages:
        return
    waking = WOKEN ** (1 / max(1, optimisers.newborns.steps))
    for number, layer in enumerate(getattr(getattr(model, "model", None), "layers", ())):
        young = ages.get(f"model.layers.{number}.feed_forward.thalamus.weight", {}).get(0)
        balance = getattr(getattr(layer.feed_forward, "thalamus", None), "balance", None)
        if young is None or balance is None:
            continue
        born = (young < optimisers.newborns.steps).to(balance.device)
        if bool(born.all()):
            continue
        shore = balance[~born].min()
        asleep = born & (balance < shore)
        balance.copy_(torch.where(asleep, shore - (shore - balance) * waking, balance))


@torch.no_grad()
def awaken(model: Any, optimisers: Optimisers) -> None:
    """Take units that sleep since a growth elsewhere, whose balance lies far below the others', for newborns."""
    cortex = getattr(model, "model", None)  # a spiking model has none, and no units
    for number, layer in enumerate(getattr(cortex, "layers", ())):
        name = f"model.layers.{number}.feed_forward.thalamus.weight"
        balance = getattr(getattr(layer.feed_forward, "thalamus", None), "balance", None)
        if balance is None or name not in optimisers.weights or len(balance) < 2:
            continue
        ordered = balance.sort().values
        gaps = ordered.diff()
        widest = int(gaps.argmax())
        if float(gaps[widest]) > DEPTH / 2:
            asleep = (balance <= ordered[widest]).cpu()
            optimisers.newborns.ages[name] = {0: torch.full((len(asleep),), ADULT).masked_fill(asleep, 0)}


def shape_at(checkpoint: Path, planned: PragnosiaConfig) -> PragnosiaConfig:
    """The shape a run has at a checkpoint: the planned one, unless the model has changed its structure by then."""
    saved = load_config(checkpoint)
    alike = {name: t.shape for name, t in shapes(saved).items()} == {
        name: t.shape for name, t in shapes(planned).items()
    }
    return planned if alike and saved.units == planned.units else saved


def sizes(config: PragnosiaConfig) -> tuple[int, int]:
    """Parameters in all, and those awake for a token."""
    counted = account(config)
    return counted.total_parameters, counted.active_parameters
