"""The definitions in plain torch. Of a bank: every unit computes every token, a mask keeps who was woken.

    y[t] = sum_a strengths[t, a] (down[u] act(up[u] x[t] + up_bias[u]) + down_bias[u])      u = units[t, a]

Slow on purpose, and right: every other backend is tested against this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from pragnosia.kernels.activations import Activation

TINY = 1e-20  # a sum to divide by is at least this


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
    """The masked dense sum; differentiable to any order."""
    num_units = up.shape[0]
    hidden = torch.einsum("td,uhd->tuh", x, up)
    if up_bias is not None:
        hidden = hidden + up_bias
    result = torch.einsum("tuf,udf->tud", activation(hidden), down)
    if down_bias is not None:
        result = result + down_bias
    # (T, U): how strongly token t woke unit u, 0 where it did not
    woken = torch.nn.functional.one_hot(units + 1, num_units + 1)[..., 1:]
    weights = (woken * strengths[..., None]).sum(1)
    return torch.einsum("tu,tud->td", weights.to(result.dtype), result)


def choose(
    logits: Tensor, balance: Tensor | None, *, awake: int, squash: str, renormalise: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Units (T, A), strengths (T, A) and scores (T, U) of a router's logits (T, U); see routing.py."""
    if squash == "softmax":
        silenced = logits.isneginf()  # scores exactly 0, and all do where all are silenced
        scores = logits.masked_fill(silenced, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(silenced, 0.0)
    else:
        scores = logits.sigmoid()
    claims = scores.detach() if balance is None else scores.detach() + balance
    units = claims.topk(awake, dim=-1).indices
    chosen = scores.gather(-1, units)
    # a silenced unit must not wake, even where too few others are left
    units = torch.where(chosen > 0, units, -1)
    if renormalise:
        chosen = chosen / chosen.sum(-1, keepdim=True).clamp_min(TINY)
    return units, chosen * scale, scores
