"""What a unit does to its hidden values: one table, each entry with its derivative written by hand.

    (…, G*F) -> (…, F)      G = 2 for gated activations (first F columns the gate g, last F the value v), else 1

swiglu, geglu, reglu: Shazeer 2020, arXiv 2002.05202. relu2: So et al. 2021, arXiv 2109.08668.
drelu: relu(g) relu(v), silent where either is below zero; TurboSparse, Song et al. 2024, arXiv 2406.05955.
clamped_swiglu: gpt-oss, arXiv 2508.10925, with limit 7 and alpha 1.702.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 7.0
ALPHA = 1.702


@dataclass(frozen=True, kw_only=True)
class Activation:
    """One row of the table; `code` is the number by which compiled kernels know it."""

    name: str
    code: int
    num_parts: int
    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]
    num_speaking: int | None = None
    """Neurons of a unit that speak, the largest in size; the others fall silent. None: all."""

    @property
    def silences(self) -> bool:
        """Whether hidden neurons fall silent: exactly zero, so that nobody need read what they would say."""
        return self.name in ("reglu", "relu2", "drelu")

    def __call__(self, hidden: Tensor) -> Tensor:
        """`(…, G*F) -> (…, F)`."""
        active = self.function(hidden)
        return active if self.num_speaking is None else active * self._speaks(active)

    def backward(self, hidden: Tensor, grad: Tensor) -> Tensor:
        """The gradient of `hidden` (…, G*F), given that of the result (…, F)."""
        if self.num_speaking is not None:
            grad = grad * self._speaks(self.function(hidden))
        return self.derivative(hidden, grad)

    def limited(self, num_speaking: int | None) -> Activation:
        """The same where at most so many neurons of a unit speak."""
        return self if num_speaking is None else replace(self, num_speaking=num_speaking)

    def _speaks(self, active: Tensor) -> Tensor:
        assert self.num_speaking is not None
        loudest = active.detach().abs().topk(min(self.num_speaking, active.shape[-1]), dim=-1).indices
        return torch.zeros_like(active).scatter_(-1, loudest, 1)


def _gated(gate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def function(hidden: Tensor) -> Tensor:
        g, v = hidden.chunk(2, -1)
        return gate(g) * v

    return function


def _gated_derivative(
    gate: Callable[[Tensor], Tensor], gate_backward: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    def derivative(hidden: Tensor, grad: Tensor) -> Tensor:
        g, v = hidden.chunk(2, -1)
        return torch.cat((gate_backward(grad * v, g), gate(g).mul_(grad)), -1)

    return derivative


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_tanh_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")  # type: ignore[no-any-return]


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward(grad, x)  # type: ignore[no-any-return]


def _relu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return grad * (x > 0)


def _clamped_swiglu(hidden: Tensor) -> Tensor:
    g, v = hidden.chunk(2, -1)
    g, v = g.clamp(max=LIMIT), v.clamp(-LIMIT, LIMIT)
    return (v + 1) * g * torch.sigmoid(ALPHA * g)


def _clamped_swiglu_derivative(hidden: Tensor, grad: Tensor) -> Tensor:
    g, v = hidden.chunk(2, -1)
    free_g, free_v = g <= LIMIT, (v >= -LIMIT) & (v <= LIMIT)
    g, v = g.clamp(max=LIMIT), v.clamp(-LIMIT, LIMIT)
    s = torch.sigmoid(ALPHA * g)
    grad_g = grad * (v + 1) * s * (1 + ALPHA * g * (1 - s)) * free_g
    return torch.cat((grad_g, grad * g * s * free_v), -1)


def _drelu(hidden: Tensor) -> Tensor:
    g, v = hidden.chunk(2, -1)
    return F.relu(g) * F.relu(v)


def _drelu_derivative(hidden: Tensor, grad: Tensor) -> Tensor:
    g, v = hidden.chunk(2, -1)
    return torch.cat((_relu_backward(grad * F.relu(v), g), _relu_backward(grad * F.relu(g), v)), -1)


def _relu2(hidden: Tensor) -> Tensor:
    return F.relu(hidden).square()


def _relu2_derivative(hidden: Tensor, grad: Tensor) -> Tensor:
    return 2 * F.relu(hidden) * grad


def _row(
    code: int,
    name: str,
    num_parts: int,
    function: Callable[[Tensor], Tensor],
    derivative: Callable[[Tensor, Tensor], Tensor],
) -> Activation:
    return Activation(name=name, code=code, num_parts=num_parts, function=function, derivative=derivative)


ACTIVATIONS: dict[str, Activation] = {
    row.name: row
    for row in (
        _row(0, "swiglu", 2, _gated(F.silu), _gated_derivative(F.silu, _silu_backward)),
        _row(1, "geglu", 2, _gated(_gelu_tanh), _gated_derivative(_gelu_tanh, _gelu_tanh_backward)),
        _row(2, "reglu", 2, _gated(F.relu), _gated_derivative(F.relu, _relu_backward)),
        _row(3, "relu2", 1, _relu2, _relu2_derivative),
        _row(4, "gelu", 1, F.gelu, lambda h, grad: torch.ops.aten.gelu_backward(grad, h)),
        _row(5, "clamped_swiglu", 2, _clamped_swiglu, _clamped_swiglu_derivative),
        _row(6, "drelu", 2, _drelu, _drelu_derivative),
    )
}


def activation_named(name: str) -> Activation:
    """The table's entry. Raises ValueError that lists what there is."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}. Available: {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]
