"""The definition of a bank in plain torch: every unit computes every token, a mask keeps who was woken.

    y[t] = sum_a strengths[t, a] (down[u] act(up[u] x[t] + up_bias[u]) + down_bias[u])      u = units[t, a]

Slow on purpose, and right: every other backend is tested against this one.
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
