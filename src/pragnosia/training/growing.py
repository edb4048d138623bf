"""Growing: what a run does when its model has changed its structure between two steps.

    change = add_units(model, 8)                             a verb of plasticity: the model has another shape
    follow(change, model, rule, optimisers, average)         moments, averages and schedules go along
    … every step, around rule.settle: resting(model, optimisers), settle(model, optimisers, …)      the newborn wake
    awaken(model, optimisers)        once, where a run begins: what sleeps since `pragnosia grow` is newborn, too

Both are deterministic, so that every process of a distributed run that does the same stays equal to the others; what
wraps a model must be made anew. They act between optimiser steps: gradients that were being accumulated are gone. What
a checkpoint needs beyond the weights' own file is in the optimisers' state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from pragnosia.errors import ConfigError
from pragnosia.inference.loading import load_config
from pragnosia.learning import LearningRule
from pragnosia.measure.accounting import account
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.plasticity.depth import stream_writers
from pragnosia.plasticity.growth import DEPTH
from pragnosia.plasticity.origin import Change
from pragnosia.plasticity.transplant import shapes
from pragnosia.training.average import Average
from pragnosia.training.newborns import ADULT
from pragnosia.training.optimisers import Optimisers, embedded_in

if TYPE_CHECKING:
    from pragnosia.training.configuration import TrainConfig

WOKEN = 1e-3
"""What is left of the depth of a newborn's sleep after `optimiser.newborn_steps` steps."""


def follow(
    change: Change, model: nn.Module, rule: LearningRule, optimisers: Optimisers, average: Average | None = None
) -> None:
    """Let optimisers and averages go along with a change that was just made to `model`. Raises ConfigError."""
    optimisers.newborns.thaw(change.origins, model.named_parameters())
    learners = list(rule.changes(model))
    optimisers.follow(change, learners, embedded_in(model))
    if average is not None:
        average.follow(change, learners)


def resting(model: nn.Module, optimisers: Optimisers) -> dict[str, Tensor]:
    """Buffers as they are before the rule settles, where elders learn less than newborns; else none."""
    newborns = optimisers.newborns
    if newborns.elders == 1 or not newborns.ages:
        return {}
    return {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}


@torch.no_grad()
def settle(model: Any, optimisers: Optimisers, rested: Mapping[str, Tensor] | None = None) -> None:
    """Let newborn units wake a little more: their balance comes closer to the least of the grown-up's.

    `rested` is what `resting` said: balances of elders go as small a part of the way as their weights do.
    """
    newborns = optimisers.newborns
    if not newborns.ages:
        return
    for name, before in (rested or {}).items():
        now: Tensor = model.get_buffer(name)
        prefix = name.rpartition(".")[0]
        ages = newborns.ages.get(f"{prefix}.weight", {}).get(0)  # of a router's units; all of anything else is old
        share: Any = newborns.elders
        if ages is not None and now.dim():  # thresholds have their units last, as a balance has
            share = torch.where(ages >= ADULT, newborns.elders, 1.0).to(now).expand_as(now)
        now.copy_(before.lerp(now, share))
    waking = WOKEN ** (1 / max(1, newborns.steps))
    for number, layer in enumerate(getattr(getattr(model, "model", None), "layers", ())):
        young = newborns.ages.get(f"model.layers.{number}.feed_forward.thalamus.weight", {}).get(0)
        balance = getattr(getattr(layer.feed_forward, "thalamus", None), "balance", None)
        if young is None or balance is None:
            continue
        born = (young < newborns.steps).to(balance.device)
        if bool(born.all()):
            continue
        shore = balance[~born].min()
        asleep = born & (balance < shore)
        balance.copy_(torch.where(asleep, shore - (shore - balance) * waking, balance))


def awaken(model: Any, optimisers: Optimisers) -> None:
    """Take for newborn what sleeps since a growth elsewhere."""
    for name, born in asleep(model).items():
        if name in optimisers.weights:
            ages = torch.full((len(born),), ADULT).masked_fill(born.cpu(), 0)
            optimisers.newborns.ages[name] = {0: ages}
    optimisers.newborns.freeze(optimisers.weights)


@torch.no_grad()
def asleep(model: Any) -> dict[str, Bool[Tensor, " N"]]:
    """Of each parameter that has such, which rows of it say nothing since they grew.

    A unit sleeps whose balance lies far below the others'; a layer, of which all that writes to the stream is zero.
    """
    found: dict[str, Tensor] = {}
    layers = getattr(getattr(model, "model", None), "layers", ())  # a spiking model has none, and no units
    silent = silent_layers(model) if len(layers) else []
    for number, layer in enumerate(layers):
        prefix = f"model.layers.{number}."
        if number in silent:
            found |= {
                prefix + name: torch.ones(len(weight), dtype=torch.bool)
                for name, weight in layer.named_parameters()
                if weight.dim()
            }
            continue
        thalamus: Any = getattr(layer.feed_forward, "thalamus", None)
        balance = getattr(thalamus, "balance", None)
        if balance is None or len(balance) < 2:
            continue
        ordered = balance.sort().values
        gaps = ordered.diff()
        widest = int(gaps.argmax())
        if float(gaps[widest]) > DEPTH / 2:
            born = balance <= ordered[widest]
            own = dict(layer.feed_forward.bank.named_parameters(prefix="bank"))
            own |= {f"thalamus.{name}": w for name, w in thalamus.named_parameters(recurse=False)}
            found |= {f"{prefix}feed_forward.{name}": born for name in own}
    return found


def silent_layers(model: Any) -> list[int]:
    """Layers that write nothing to the stream, where others do: grown, and not trained since."""
    weights, loud = dict(model.named_parameters()), set()
    for name in stream_writers(model):
        if name.startswith("model.layers.") and bool(weights[name].any()):
            loud.add(int(name.split(".")[2]))
    return [number for number in range(len(model.model.layers)) if number not in loud] if loud else []


def check_elders(config: TrainConfig, model: Any) -> None:
    """Raise ConfigError where elders shall learn less than newborns, and nothing is or will be newborn."""
    elders = config.optimiser.elders
    if elders < 1 and config.stages is None and config.plasticity is None and not asleep(model):
        raise ConfigError(
            f"optimiser.elders is {elders:g}, and nothing in this run is newborn: all would learn as ever; "
            "start with a model that `pragnosia grow` has made larger, or leave it out"
        )


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
