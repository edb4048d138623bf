"""Learnable gates: how loudly a unit may speak is learned. A unit whose gate has closed goes; open ones call for more.

    down_u = g_u c d_u               d_u of norm 1 says what, the gate g_u in [0, 1] how loudly; c is fully open
    dL/dg_u = c <dL/d down_u, d_u>   so whatever moves `down_u` moves its gate
    g_u <- min(1, max(0, g_u - p))   after every step: the pressure p closes what does not earn its place

The second line is why a gate needs no parameter of its own: it is the norm of what a unit writes with, and costs the
forward pass nothing. The third is the proximal step of a penalty p sum_u g_u, a group lasso (Yuan & Lin 2006, doi:
10.1111/j.1467-9868.2005.00532.x), under a largest norm. That gates may call for growth as well as for pruning is after
Yen (2025), known to us by a summary alone, and Neural Plasticity Networks (Li & Ji): this is the plain idea of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from pragnosia.errors import ConfigError

OPEN = 0.999
"""A gate that a step has pushed open against the pressure is 1, but for rounding."""


@dataclass(frozen=True, kw_only=True)
class GatesConfig:
    """How hard gates are pressed, and what they call for."""

    pressure: float = 1e-3
    """By how much a gate closes in a step, if nothing opens it."""
    loudness: float = 1.5
    """A gate is fully open at so many times the mean loudness of its layer's units where it was first looked at."""
    closed: float = 0.02
    """A unit whose gate is below it goes."""
    crowded: float = 0.5
    """Where this share of a layer's gates is fully open, units are added."""

    def __post_init__(self) -> None:
        if not 0 < self.pressure < 1:
            raise ConfigError(f"gates.pressure is {self.pressure}; it must lie between 0 and 1")
        if not self.loudness >= 1:
            raise ConfigError(f"gates.loudness is {self.loudness}; it must be at least 1, or all are open at once")
        if not 0 < self.closed < 1:
            raise ConfigError(f"gates.closed is {self.closed}; it must lie between 0 and 1")
        if not 0 < self.crowded <= 1:
            raise ConfigError(f"gates.crowded is {self.crowded}; it is a share: above 0, at most 1")


@dataclass(frozen=True)
class Crowd:
    """The layer that has the largest share of its gates fully open."""

    layer: int
    unit: int
    """One of the open."""
    reason: str


@final
class Gates:
    """The gates of a model's units; they are read from its weights, and pressed there."""

    def __init__(self, config: GatesConfig) -> None:
        self.config = config
        self.full: dict[int, float] = {}
        """Of each sparse layer, the norm at which a gate is fully open."""

    def clear(self) -> None:
        """The structure changed: what is fully open is to be found anew."""
        self.full = {}

    @torch.no_grad()
    def press(self, model: Any) -> None:
        """After a step: every gate a little more closed, and none beyond fully open."""
        for layer, bank in _banks(model):
            loud = bank.down.float().flatten(1).norm(dim=1)
            if layer not in self.full:
                mean = float(loud.mean())
                if not mean > 0:  # a layer that is born has nothing to press yet
                    continue
                self.full[layer] = self.config.loudness * mean
            gate = loud / self.full[layer]
            factor = (gate - self.config.pressure).clamp(0.0, 1.0) / gate.clamp_min(torch.finfo(gate.dtype).tiny)
            bank.down.mul_(factor.to(bank.down.dtype).view(-1, 1, 1))
            if bank.down_bias is not None:
                bank.down_bias.mul_(factor.to(bank.down_bias.dtype).view(-1, 1))

    @torch.no_grad()
    def read(self, model: Any) -> dict[int, Float[Tensor, " U"]]:
        """Of each layer that was pressed, every unit's gate."""
        return {
            layer: (bank.down.float().flatten(1).norm(dim=1) / self.full[layer]).cpu()
            for layer, bank in _banks(model)
            if layer in self.full
        }

    def closed(self, model: Any) -> dict[int, list[int]]:
        """Units whose gates have closed, the most closed first, by layer."""
        return {
            layer: [int(unit) for unit in gate.argsort() if float(gate[unit]) < self.config.closed]
            for layer, gate in self.read(model).items()
        }

    def crowd(self, model: Any) -> Crowd | None:
        """The most crowded layer, if it is crowded enough."""
        gates = self.read(model)
        shares = {layer: float((gate >= OPEN).float().mean()) for layer, gate in gates.items()}
        if not shares:
            return None
        layer = max(shares, key=lambda each: shares[each])
        if shares[layer] < self.config.crowded:
            return None
        share, least = f"{100 * shares[layer]:.0f} %", f"{100 * self.config.crowded:g} %"
        return Crowd(
            layer, int(gates[layer].argmax()), f"gates: {share} of layer {layer} are fully open, at least {least}"
        )


def _banks(model: Any) -> Iterator[tuple[int, Any]]:
    """The bank of each sparse layer."""
    for layer in model.config.sparse_layers:
        yield layer, model.model.layers[layer].feed_forward.bank
