"""Sparse compute on plain tensors: the bank, the linear layer, the last layer's loss. One dispatch over backends.

B batch, T time or tokens, D width, U units in a bank, A awake units, F unit width, G parts of an activation,
V vocabulary. This room imports nothing of the house and raises ValueError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.nn.functional as F

from pragnosia.kernels import cpu, native, reference
from pragnosia.kernels.activations import ACTIVATIONS, Activation, activation_named
from pragnosia.kernels.compiled import native_status
from pragnosia.kernels.cross_entropy import linear_cross_entropy

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "Activation",
    "activation_named",
    "bank",
    "linear",
    "linear_cross_entropy",
]

BACKENDS: dict[str, Callable[..., Tensor]] = {"reference": reference.bank, "cpu": cpu.bank, "native": native.bank}


def bank(
    x: Tensor,
    units: Tensor,
    strengths: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    activation: str,
    backend: str | None = None,
) -> Tensor:
    """Each token's woken units, weighted and summed: (T, D) -> (T, D)."""
    entry = activation_named(activation)
    _check_shapes(x, units, strengths, up, down, up_bias, down_bias, entry)
    name = backend or _best_backend(x, up)
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}. Available: {', '.join(BACKENDS)}")
    return BACKENDS[name](x, units, strengths, up, down, up_bias, down_bias, entry)


def _best_backend(x: Tensor, up: Tensor) -> str:
    return "native" if native.supports(x, up) else "cpu"


def _check_shapes(
    x: Tensor,
    units: Tensor,
    strengths: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: Activation,
) -> None:
    num_units, width, unit_width = down.shape
    hidden = activation.num_parts * unit_width
    expected = {
        "x": (x.shape[0], width),
        "units": (x.shape[0], units.shape[-1]),
        "strengths": tuple(units.shape),
        "up": (num_units, hidden, width),
        "up_bias": (num_units, hidden),
        "down_bias": (num_units, width),
    }
    got = {
        "x": x,
        "units": units,
        "strengths": strengths,
        "up": up,
        "up_bias": up_bias,
        "down_bias": down_bias,
    }
    for name, tensor in got.items():
        if tensor is not None and tuple(tensor.shape) != expected[name]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected {expected[name]}"
                f" beside down {tuple(down.shape)} with {activation.name}"
            )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What F.linear gives, faster where torch's is slow."""
    return F.linear(x, weight, bias)
