"""A model on two devices: its first layers and its head on an accelerator, its last layers where the host computes.

So a GPU that cannot hold what must be there for every layer still takes as many layers as it can. What is carried
from layer to layer, (B, T, D), crosses over once at the border and once before the last norm; keys and values stay
with their layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pragnosia.model.attention import Moment
from pragnosia.model.cortex import Cortex

HOST = torch.device("cpu")


def layer_of(name: str) -> int | None:
    """Which layer a tensor belongs to; None for the tables and the last norm."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] and len(parts) > 2 and parts[2].isdigit() else None


def by_layer(resident: Mapping[str, int], num_layers: int) -> list[int]:
    """Of resident bytes, each layer's."""
    shares = [0] * num_layers
    for name, size in resident.items():
        layer = layer_of(name)
        if layer is not None:
            shares[layer] += size
    return shares


def cross_over(model: Cortex, first: int, device: torch.device) -> None:
    """From layer `first` on the host computes, all else `device`: whoever is handed something takes it there."""
    for layer in model.model.layers[first:]:
        layer.register_forward_pre_hook(_Taker(HOST), with_kwargs=True)
    model.model.norm.register_forward_pre_hook(_Taker(device), with_kwargs=True)


class _Taker:
    """A hook that takes to its device what a module is given."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, module: nn.Module, given: Any, named: Any) -> tuple[Any, Any]:
        return tuple(map(self._taken, given)), {name: self._taken(value) for name, value in named.items()}

    def _taken(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.device)
        if not isinstance(value, Moment):
            return value
        cos, sin = value.rotation
        masks = {kind: None if mask is None else mask.to(self.device) for kind, mask in value.masks.items()}
        return replace(value, rotation=(cos.to(self.device), sin.to(self.device)), masks=masks)
