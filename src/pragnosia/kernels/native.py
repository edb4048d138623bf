"""A bank by the compiled kernels (source/): the grouped sum of cpu.py, gathered, multiplied and scattered in cache.

Single precision runs in registers; bfloat16 (weights in bfloat16, or autocast over masters in single precision) runs
on the processor's tile unit where it has one, and in single precision where not. Gradients come back in the dtype of
what they belong to.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from pragnosia.kernels.compiled import loaded_library, native_library
from pragnosia.kernels.memory import ask_huge_pages

if TYPE_CHECKING:
    from torch import Tensor

    from pragnosia.kernels.activations import Activation

DTYPES = (torch.float32, torch.bfloat16)
FEW_TOKENS = 4  # TOKENS of source/few.hpp: tokens of a unit, or rows of a linear layer, that share one reading

# `BankCall` of source/slots.hpp: 20 words of any call, 3 that the passes keep, 8 of backward
_COMMON, _KEPT, _BACKWARD = struct.Struct("20q"), struct.Struct("3q"), struct.Struct("8q")


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
    """The grouped sum, compiled. Raises ValueError where `supports` says no."""
    if not supports(x, up):
        raise ValueError(
            f"backend 'native' takes float32 or bfloat16 on the CPU and needs a C++ compiler, got x {x.dtype} on"
            f" {x.device} and up {up.dtype}; use backend='cpu' or None"
        )
    return supported_bank(x, units, strengths, up, down, up_bias, down_bias, activation)


def supported_bank(
    x: Tensor,
    units: Tensor,
    strengths: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: Activation,
) -> Tensor:
    """The same for tensors that `supports` has seen: asking twice is felt in a decode step."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    weights = (up, down, up_bias, down_bias)
    if units.numel() <= FEW_TOKENS * max(FEW_TOKENS, up.shape[0]) and not _wants_gradient(x, strengths, *weights):
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
    inputs = _laid_out(x, units, strengths, weights)
    out = torch.empty_like(inputs[0], dtype=dtype)
    call = _common(inputs, out, activation) + bytes(_KEPT.size + _BACKWARD.size)
    _check(loaded_library().pragnosia_bank_few(call), units, inputs[3].shape[0])
    return out


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As the compiled code reads it; asking first is cheaper than converting to the same."""
    return tensor if tensor.dtype is dtype and tensor.is_contiguous() else tensor.to(dtype).contiguous()


def _laid_out(
    x: Tensor, units: Tensor, strengths: Tensor, weights: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Rows without gaps, routes int64, strengths float, weights of one dtype."""
    up, down, up_bias, down_bias = weights
    assert up is not None
    assert down is not None
    return (
        x.contiguous(),
        _plain(units, torch.int64),
        _plain(strengths, torch.float32),
        up.contiguous(),
        _plain(down, up.dtype),
        None if up_bias is None else _plain(up_bias, up.dtype),
        None if down_bias is None else _plain(down_bias, up.dtype),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _common(inputs: tuple[Tensor | None, ...], out: Tensor | None, activation: Activation) -> bytes:
    """The words every call has; `out` None in backward."""
    x, units, strengths, up, down, up_bias, down_bias = inputs
    assert x is not None
    assert units is not None
    assert strengths is not None
    assert up is not None
    assert down is not None
    num_units, width, unit_width = down.shape
    tokens, awake = units.shape
    bf16 = torch.bfloat16
    return _COMMON.pack(
        *(tokens, awake, num_units, width, unit_width, activation.code, torch.get_num_threads()),
        *(x.dtype is bf16, up.dtype is bf16, out is not None and out.dtype is bf16),
        *(x.data_ptr(), up.data_ptr(), down.data_ptr(), _address(up_bias), _address(down_bias)),
        *(units.data_ptr(), strengths.data_ptr(), _address(out), 0, 0),
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
        library = loaded_library()
        inputs = _laid_out(x, units, strengths, (up, down, up_bias, down_bias))
        use_tiles = dtype == torch.bfloat16 and bool(library.pragnosia_tiles())
        out = x.new_empty(x.shape, dtype=dtype)
        order = x.new_empty(units.numel(), dtype=torch.int32)
        bounds = x.new_empty(up.shape[0] + 1, dtype=torch.int32)
        hidden = None
        if any(ctx.needs_input_grad):
            stored = torch.bfloat16 if use_tiles else torch.float32
            hidden = x.new_empty(units.numel(), up.shape[1], dtype=stored)
        kept = _KEPT.pack(order.data_ptr(), bounds.data_ptr(), _address(hidden))
        call = _common(inputs, out, activation) + kept + bytes(_BACKWARD.size)
        _check(library.pragnosia_bank_forward(call, use_tiles), units, up.shape[0])
        ctx.save_for_backward(*inputs, order, bounds, hidden)
        ctx.activation, ctx.use_tiles, ctx.strengths_dtype = activation, use_tiles, strengths.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, order, bounds, hidden = ctx.saved_tensors
        grad = grad.contiguous()
        need_x, _, need_strengths, *need_weights = ctx.needs_input_grad[:7]
        grad_x = torch.empty_like(inputs[0]) if need_x else None
        # a slot that woke nobody keeps its zero
        grad_strengths = torch.zeros_like(inputs[2]) if need_strengths else None
        grads = [torch.empty_like(w) if need else None for w, need in zip(inputs[3:], need_weights, strict=True)]
        for tensor in grads:
            if tensor is not None:
                ask_huge_pages(tensor)
        call = (
            _common(tuple(inputs), None, ctx.activation)
            + _KEPT.pack(order.data_ptr(), bounds.data_ptr(), hidden.data_ptr())
            + _BACKWARD.pack(
                *(grad.dtype is torch.bfloat16, grad.data_ptr(), _address(grad_x)),
                *(_address(tensor) for tensor in grads),
                _address(grad_strengths),
            )
        )
        _check(loaded_library().pragnosia_bank_backward(call, ctx.use_tiles), inputs[1], bounds.numel() - 1)
        if grad_strengths is not None:
            grad_strengths = grad_strengths.to(ctx.strengths_dtype)
        return grad_x, None, grad_strengths, *grads, None, None
