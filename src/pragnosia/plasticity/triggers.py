"""Triggers: what tells that a model should change its structure. Numbers in, a reason out; nothing is changed here.

    plateau     1 - mean loss of the last W steps / mean loss of the W before  <  gain
    overload    tokens that woke a unit / (all wakings / U)                     >  ratio
    floor       the same                                                        <  share
    gradient    of each layer, |gradient of its parameters| / sqrt(their number)

A plateau is one of the smoothed loss: both means are over whole windows, so that noise of a step does not end a stage.
Where gradients per parameter are largest, more parameters would change most: after GradMax, Evci et al. 2022, arXiv
2201.05125, which grows where the gradient of what is new would be largest, and Firefly, Wu et al. 2020, arXiv
2102.08574, which takes the gradient for the worth of a place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pragnosia.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PlateauConfig:
    """When the loss counts as standing still."""

    window: int = 50
    """Steps whose mean loss is compared with that of as many before."""
    gain: float = 0.01
    """Less than this share of the loss gained in a window is a plateau."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"plateau.window is {self.window}; it must be at least 1 step")
        if not 0 <= self.gain < 1:
            raise ConfigError(f"plateau.gain is {self.gain}; it must be at least 0 and below 1")


@dataclass
class Plateau:
    """The losses since something last changed; only as many as are looked at."""

    config: PlateauConfig
    losses: list[float] = field(default_factory=list)

    def add(self, loss: float) -> None:
        """One more step."""
        self.losses = [*self.losses, loss][-2 * self.config.window :]

    def clear(self) -> None:
        """Something changed: what was before does not compare."""
        self.losses = []

    @property
    def gain(self) -> float | None:
        """The share of the loss gained from one window to the next; None before there are two."""
        window = self.config.window
        if len(self.losses) < 2 * window:
            return None
        before, now = sum(self.losses[:window]), sum(self.losses[window:])
        return 1 - now / before if before else 0.0

    @property
    def reason(self) -> str | None:
        """Why it is time; None while the loss falls."""
        gain = self.gain
        if gain is None or gain >= self.config.gain:
            return None
        fell, least = f"{100 * gain:.2f} %", f"{100 * self.config.gain:g} %"
        return f"plateau: the loss fell by {fell} in {self.config.window} steps, below {least}"


def relative(load: Float[Tensor, " U"]) -> Float[Tensor, " U"]:
    """Each unit's work against an even share."""
    return load * (load.numel() / load.sum().clamp_min(1.0))


@dataclass(frozen=True)
class Overload:
    """The unit that does most, of all layers."""

    layer: int
    unit: int
    share: float
    reason: str


def overloaded(loads: Mapping[int, Tensor], ratio: float) -> Overload | None:
    """The busiest unit, if it does more than `ratio` times its share; None where nobody does."""
    shares = {layer: relative(load) for layer, load in loads.items()}
    if not shares:
        return None
    layer = max(shares, key=lambda each: float(shares[each].max()))
    unit, share = int(shares[layer].argmax()), float(shares[layer].max())
    if share <= ratio:
        return None
    reason = f"overload: unit {unit} of layer {layer} did {share:.2g} times an even share, above {ratio:g}"
    return Overload(layer, unit, share, reason)


def idle(loads: Mapping[int, Tensor], share: float) -> dict[int, list[int]]:
    """Units that do less than `share` of an even share, the idlest first, by layer."""
    found = {}
    for layer, load in loads.items():
        own = relative(load)
        found[layer] = [int(unit) for unit in own.argsort() if float(own[unit]) < share]
    return found


@torch.no_grad()
def gradient_per_parameter(layers: Sequence[nn.Module]) -> list[float]:
    """Of each layer the root mean square of its gradient; 0 where there is none."""
    found = []
    for layer in layers:
        square, count = 0.0, 0
        for weight in layer.parameters():
            if weight.grad is not None and not weight.grad.is_sparse:
                square += float(weight.grad.float().square().sum())
                count += weight.numel()
        found.append(math.sqrt(square / count) if count else 0.0)
    return found
