"""Muon for matrices and for banks: momentum, made orthogonal, one unit at a time.

    M <- mu M + (1 - mu) G               momentum
    O  = NS((1 - mu) G + mu M)           five Newton-Schulz steps, X <- a X + b (X X') X + c (X X')^2 X
    W <- W - eta (decay W + 0.2 sqrt(max(rows, columns)) O)

Jordan et al. 2024 (kellerjordan.github.io/posts/muon), whose coefficients these are; the size of the update is
matched to AdamW's as in Liu et al. 2025 (arXiv 2502.16982, eq. 4). torch.optim.Muon takes only 2-D
parameters; there, this equals it. A unit that slept through the step (its gradient is exactly zero) is left
alone: orthogonalised, what remains of its momentum would be full size again, and move it without evidence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pragnosia.training.weight_by_weight import WeightByWeight

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
TINY = 1e-7


def orthogonalised(matrices: Float[Tensor, "U R C"]) -> Float[Tensor, "U R C"]:
    """Each matrix with its singular values pushed to about 1, in bfloat16."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=TINY)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@final
class Muon(WeightByWeight):
    """Muon over 2-D parameters (R, C) and banks (U, R, C)."""

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        stacked = (-1, *weight.shape[-2:])  # a matrix is a bank of one unit
        assert weight.grad is not None
        units, gradient = weight.view(stacked), weight.grad.view(stacked)
        buffer = state["momentum_buffer"].view(stacked)
        if self.grad_scale is not None:
            gradient = gradient / self.grad_scale
        awake = gradient.flatten(1).any(1)
        if bool(awake.all()):
            _advance(units, gradient, buffer, group)
            return
        chosen = awake.nonzero().squeeze(1)
        awake_units, awake_buffer = units[chosen], buffer[chosen]
        _advance(awake_units, gradient[chosen], awake_buffer, group)
        units[chosen], buffer[chosen] = awake_units, awake_buffer


def _advance(units: Tensor, gradient: Tensor, buffer: Tensor, group: dict[str, Any]) -> None:
    """The three lines of the module's docstring, in place."""
    lr, momentum = float(group["lr"]), float(group["momentum"])
    buffer.lerp_(gradient, 1 - momentum)
    direction = orthogonalised(gradient.lerp(buffer, momentum))
    units.mul_(1 - lr * float(group["weight_decay"]))
    units.add_(direction, alpha=-lr * 0.2 * math.sqrt(max(units.shape[-2:])))
