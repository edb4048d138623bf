"""A bank for few tokens in plain torch, traceable: copy the woken units' weights, multiply in one batch.

    W = up[units], V = down[units]      y[t] = sum_a s[t, a] (V[t, a] act(W[t, a] x[t]))

What `torch.compile` is given, so that a decode step has no graph break; a slot that woke nobody weighs zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from pragnosia.kernels.activations import Activation


def bank(
    x: Tensor,
    units: Tensor,
    strengths: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: Activation,
) -> Tensor:
    """The sum over gathered weights; memory grows with T*A units' weights.

    A compiled graph has one shape: a slot that wakes nobody is computed, of unit 0, and counts for nothing.
    """
    who = units.clamp(min=0)
    hidden = torch.einsum("tahd,td->tah", up[who], x)  # (T, A, G*F)
    if up_bias is not None:
        hidden = hidden + up_bias[who]
    result = torch.einsum("tadf,taf->tad", down[who], activation(hidden))  # (T, A, D)
    if down_bias is not None:
        result = result + down_bias[who]
    woken = torch.where(units >= 0, strengths, 0).to(result.dtype)
    return torch.einsum("tad,ta->td", result, woken)
