"""The compiled kernels (source/) as torch sees them: a bank gathered, multiplied and scattered in cache, and more.

Single precision runs in registers; bfloat16 (weights in bfloat16, or autocast over masters in single precision) runs
on the processor's tile unit where it has one, and in single precision where not. Gradients come back in the dtype of
what they belong to.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from pragnosia.kernels.compiled import native_library
from pragnosia.kernels.memory import ask_huge_pages

if TYPE_CHECKING:
    from torch import Tensor

    from pragnosia.kernels.activations import Activation

DTYPES = (torch.float32, torch.bfloat16)
FEW_TOKENS = 4  # TOKENS of source/few.hpp: tokens of a unit, or rows of a linear layer, that share one reading
FEW_SLOTS = 16
FEW_WEIGHTS = 1 << 14  # a smaller linear layer is all overhead


class _BankCall(ctypes.Structure):
    """`BankCall` of source/slots.hpp, field by field."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in ("tokens", "awake", "units", "width", "unit_width", "activation")]
        + [(name, ctypes.c_int64) for name in ("threads", "x_is_bf16", "weights_are_bf16", "grad_is_bf16")]
        + [("out_is_bf16", ctypes.c_int64)]
        + [(name, ctypes.c_void_p) for name in ("x", "up", "down", "up_bias", "down_bias", "routes", "strengths")]
        + [(name, ctypes.c_void_p) for name in ("order", "bounds", "hidden", "out", "grad", "grad_x", "grad_up")]
        + [(name, ctypes.c_void_p) for name in ("grad_down", "grad_up_bias", "grad_down_bias", "grad_strengths")]
    )


def supports(x: Tensor, up: Tensor) -> bool:
    """Whether the compiled kernels take these tensors."""
    if not x.is_cpu or x.dtype not in DTYPES or up.dtype not in DTYPES:
        return False
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") not in DTYPES:
        return False
    return native_library() is not None


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
    """The grouped sum, compiled."""
    if not supports(x, up):
        raise ValueError(
            f"backend 'native' takes float32 or bfloat16 on the CPU and needs a C++ compiler, got x {x.dtype} on"
            f" {x.device} and up {up.dtype}; use backend='cpu' or None"
        )
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    weights = (up, down, up_bias, down_bias)
    slots = units.numel()
    if slots <= max(FEW_SLOTS, FEW_TOKENS * up.shape[0]) and not _wants_gradient(x, strengths, *weights):
        return _few(x, units, strengths, weights, activation, dtype)
    result: Tensor = _Bank.apply(  # type: ignore[no-untyped-call]
        x, units, strengths, *weights, activation, dtype
    )
    return result


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _few(
    x: Tensor,
    units: Tensor,
    strengths: Tensor,
    weights: tuple[Tensor | None, ...],
    activation: Activation,
    dtype: torch.dtype,
) -> Tensor:
    """Without gradients, units with a few tokens each: weights are read where they lie."""
    rows, routes, strong, weights = _contiguous(x, units, strengths, weights)
    out = torch.empty_like(rows, dtype=dtype)
    call = _call_of(rows, routes, strong, weights, activation)
    call.out, call.out_is_bf16 = out.data_ptr(), dtype is torch.bfloat16
    _check(_library().pragnosia_bank_few(ctypes.byref(call)), routes, call.units)
    return out


def supports_few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `linear` takes these: a row or a few, no gradient, weights worth the call and lying as they are read."""
    return (
        x.is_cpu
        and x.dtype is weight.dtype
        and x.dtype in DTYPES
        and weight.numel() >= FEW_WEIGHTS
        and 0 < x.numel() <= FEW_TOKENS * weight.shape[1]
        and x.shape[-1] == weight.shape[1]
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and not _wants_gradient(x, weight, bias)
        and native_library() is not None
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight' + bias for up to FEW_TOKENS rows."""
    rows = x.contiguous()
    outs, depth = weight.shape
    out = x.new_empty((*x.shape[:-1], outs))
    bias = None if bias is None else bias.to(weight.dtype).contiguous()
    is_bf16 = x.dtype is torch.bfloat16
    code = _library().pragnosia_linear_few(
        *(rows.data_ptr(), is_bf16, weight.data_ptr(), _address(bias), is_bf16),
        *(x.numel() // depth, outs, depth, torch.get_num_threads(), out.data_ptr()),
    )
    if code:
        raise MemoryError("the compiled linear layer found no memory for its scratch")
    return out


def _library() -> ctypes.CDLL:
    library = native_library()
    assert library is not None
    return library


def _contiguous(
    x: Tensor, units: Tensor, strengths: Tensor, weights: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, ...]]:
    """As the compiled code reads them: rows without gaps, weights of one dtype, routes int64, strengths float."""
    dtype = weights[0].dtype if weights[0] is not None else x.dtype
    plain = tuple(w if w is None else w.to(dtype).contiguous() for w in weights)
    return x.contiguous(), units.long().contiguous(), strengths.float().contiguous(), plain


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _call_of(
    x: Tensor, units: Tensor, strengths: Tensor, weights: tuple[Tensor | None, ...], activation: Activation
) -> _BankCall:
    up, down, up_bias, down_bias = weights
    assert up is not None
    assert down is not None
    num_units, width, unit_width = down.shape
    return _BankCall(
        *(x.shape[0], units.shape[1], num_units, width, unit_width, activation.code, torch.get_num_threads()),
        *(x.dtype is torch.bfloat16, up.dtype is torch.bfloat16, False, False),
        *(x.data_ptr(), up.data_ptr(), down.data_ptr(), _address(up_bias), _address(down_bias)),
        *(units.data_ptr(), strengths.data_ptr()),
    )


def _check(code: int, units: Tensor, num_units: int) -> None:
    if code == 1:
        raise ValueError(f"units reach {units.min()} to {units.max()}, expected -1 (nobody) to {num_units - 1}")
    if code:
        raise MemoryError("the compiled bank found no memory for its scratch; wake fewer tokens at once")


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
        library = _library()
        rows, routes, strong, weights = _contiguous(x, units, strengths, (up, down, up_bias, down_bias))
        use_tiles = dtype == torch.bfloat16 and bool(library.pragnosia_tiles())
        out = x.new_empty(x.shape, dtype=dtype)
        order = units.new_empty(units.numel(), dtype=torch.int32)
        bounds = units.new_empty(up.shape[0] + 1, dtype=torch.int32)
        call = _call_of(rows, routes, strong, weights, activation)
        call.order, call.bounds, call.out = order.data_ptr(), bounds.data_ptr(), out.data_ptr()
        call.out_is_bf16 = dtype == torch.bfloat16
        hidden = None
        if any(ctx.needs_input_grad):
            stored = torch.bfloat16 if use_tiles else torch.float32
            hidden = x.new_empty(units.numel(), up.shape[1], dtype=stored)
            call.hidden = hidden.data_ptr()
        _check(library.pragnosia_bank_forward(ctypes.byref(call), int(use_tiles)), routes, call.units)
        ctx.save_for_backward(rows, routes, strong, *weights, order, bounds, hidden)
        ctx.activation, ctx.use_tiles, ctx.dtypes = activation, use_tiles, (x.dtype, strengths.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, units, strengths, up, down, up_bias, down_bias, order, bounds, hidden = ctx.saved_tensors
        needs = ctx.needs_input_grad
        call = _call_of(x, units, strengths, (up, down, up_bias, down_bias), ctx.activation)
        call.order, call.bounds, call.hidden = order.data_ptr(), bounds.data_ptr(), hidden.data_ptr()
        grad = grad.contiguous()
        call.grad, call.grad_is_bf16 = grad.data_ptr(), grad.dtype == torch.bfloat16
        grads = {
            f"grad_{name}": torch.empty_like(tensor)
            for name, tensor, need in (
                ("x", x, needs[0]),
                ("up", up, needs[3]),
                ("down", down, needs[4]),
                ("up_bias", up_bias, needs[5]),
                ("down_bias", down_bias, needs[6]),
            )
            if need
        }
        if needs[2]:
            grads["grad_strengths"] = torch.zeros_like(strengths)  # a slot that woke nobody keeps its zero
        for name, tensor in grads.items():
            ask_huge_pages(tensor)
            setattr(call, name, tensor.data_ptr())
        _check(_library().pragnosia_bank_backward(ctypes.byref(call), int(ctx.use_tiles)), units, call.units)
        result = [
            grads.get(name)
            for name in ("grad_x", "", "grad_strengths", "grad_up", "grad_down", "grad_up_bias", "grad_down_bias")
        ]
        if result[2] is not None:
            result[2] = result[2].to(ctx.dtypes[1])
        return (*result, None, None)


def supports_losses(logits: Tensor) -> bool:
    """Whether `losses_` takes these logits."""
    return logits.is_cpu and logits.dtype in DTYPES and native_library() is not None


def losses_(logits: Tensor, targets: Tensor, ignore_index: int, scale: float, slopes: bool) -> Tensor:
    """The sum of the rows' cross-entropies; the logits become scale times its gradient where `slopes` is asked."""
    rows, vocabulary = logits.shape
    aims, losses = targets.long().contiguous(), torch.empty(rows)
    code = _library().pragnosia_loss_rows(
        *(logits.data_ptr(), logits.dtype is torch.bfloat16, rows, vocabulary, aims.data_ptr(), ignore_index),
        *(scale, slopes, torch.get_num_threads(), losses.data_ptr()),
    )
    if code == 1:
        raise ValueError(
            f"targets reach {targets.min()} to {targets.max()}, expected 0 to {vocabulary - 1} or {ignore_index}"
        )
    if code:
        raise MemoryError("the compiled loss found no memory for a row of logits")
    return losses.sum()
