"""A bank in plain torch that touches only who is awake: sort the slots by unit, one product per woken unit.

    X = x[tokens]   H = X up'   P = act(H)   Y = P down'   y[t] = sum_a s[t, a] Y[slot(t, a)]          forward
    dP = dY down    ds = <P, dP>   dH = act'(H) (s dP)   dX = dH up   dup = dH' X   ddown = (s dY)' P   backward

All in one autograd node, so that a unit costs three or six matrix products and no bookkeeping.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from pragnosia.kernels.slots import Slots, sort_slots

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
    """The grouped sum; gradients come back in the dtype of what they belong to."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    result: Tensor = _Bank.apply(  # type: ignore[no-untyped-call]
        x, units, strengths, up, down, up_bias, down_bias, activation, dtype
    )
    return result


def _products(rows: Tensor, weights: Tensor, slots: Slots, *, transposed: bool) -> Tensor:
    """Row block of unit u times weights[u] (or its transpose), for every woken unit."""
    result = rows.new_empty(rows.shape[0], weights.shape[1 if transposed else 2])
    for unit, start, stop in slots.groups:
        weight = weights[unit].to(rows.dtype)
        torch.mm(rows[start:stop], weight.t() if transposed else weight, out=result[start:stop])
    return result


def _weight_gradient(left: Tensor, right: Tensor, like: Tensor, slots: Slots) -> Tensor:
    """grad[u] = left' right over the rows of u; units nobody woke stay at the zero fill."""
    grad = torch.zeros_like(like, memory_format=torch.contiguous_format)
    same = left.dtype == like.dtype
    for unit, start, stop in slots.groups:
        if same:
            torch.mm(left[start:stop].t(), right[start:stop], out=grad[unit])
        else:
            grad[unit].copy_(torch.mm(left[start:stop].t(), right[start:stop]))
    return grad


def _bias_gradient(rows: Tensor, like: Tensor, slots: Slots) -> Tensor:
    grad = torch.zeros_like(like, memory_format=torch.contiguous_format)
    for unit, start, stop in slots.groups:
        grad[unit] = rows[start:stop].sum(0)
    return grad


class _Bank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        units: Tensor,
        strengths: Tensor,
        up: Tensor,
        down: Tensor,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        activation: Activation,
        dtype: torch.dtype,
    ) -> Tensor:
        slots = sort_slots(units, up.shape[0])
        rows = x.index_select(0, slots.tokens).to(dtype)  # (N, D), N slots that woke somebody
        hidden = _products(rows, up, slots, transposed=True)  # (N, G*F)
        if up_bias is not None:
            hidden += up_bias.index_select(0, slots.units).to(dtype)
        result = _products(activation(hidden), down, slots, transposed=True)  # (N, D)
        if down_bias is not None:
            result += down_bias.index_select(0, slots.units).to(dtype)
        ctx.save_for_backward(x, strengths, up, down, up_bias, down_bias, hidden)
        ctx.slots, ctx.activation = slots, activation
        woken = strengths.reshape(-1).index_select(0, slots.order).to(dtype)
        total: Tensor = slots.sum_over_slots(result.mul_(woken[:, None]))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, strengths, up, down, up_bias, down_bias, hidden = ctx.saved_tensors
        slots, activation, dtype = ctx.slots, ctx.activation, hidden.dtype
        need_x, _, need_strengths, need_up, need_down, need_up_bias, need_down_bias, _, _ = ctx.needs_input_grad
        grad_x = grad_strengths = grad_up = grad_down = grad_up_bias = grad_down_bias = None

        woken = strengths.reshape(-1).index_select(0, slots.order).to(dtype)[:, None]
        grad_rows = grad.to(dtype).index_select(0, slots.tokens)  # (N, D)
        grad_active = _products(grad_rows, down, slots, transposed=False)  # (N, F), before the strength
        active = activation(hidden)
        if need_strengths:
            # <dY, Y> = <dY, down P + b> = <dP, P> + <dY, b>: Y itself is not needed
            along = (grad_active * active).sum(-1, dtype=strengths.dtype)
            if down_bias is not None:
                along += (grad_rows * down_bias.index_select(0, slots.units)).sum(-1)
            grad_strengths = torch.zeros_like(strengths, memory_format=torch.contiguous_format)
            grad_strengths.view(-1)[slots.order] = along
        grad_hidden = activation.backward(hidden, grad_active.mul_(woken))
        if need_x:
            grad_x = slots.sum_over_slots(_products(grad_hidden, up, slots, transposed=False)).to(x.dtype)
        if need_up:
            grad_up = _weight_gradient(grad_hidden, x.index_select(0, slots.tokens).to(dtype), up, slots)
        if need_up_bias:
            grad_up_bias = _bias_gradient(grad_hidden, up_bias, slots)
        grad_rows = grad_rows.mul_(woken)
        if need_down:
            grad_down = _weight_gradient(grad_rows, active, down, slots)
        if need_down_bias:
            grad_down_bias = _bias_gradient(grad_rows, down_bias, slots)
        return grad_x, None, grad_strengths, grad_up, grad_down, grad_up_bias, grad_down_bias, None, None
