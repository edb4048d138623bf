"""A bank by the compiled kernels (source/): the same grouped sum as cpu.py, gathered, multiplied and scattered in cache.

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
    if x.device.type != "cpu" or x.dtype not in DTYPES or up.dtype not in DTYPES:
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
    result: Tensor = _Bank.apply(  # type: ignore[no-untyped-call]
        x, units, strengths, up, down, up_bias, down_bias, activation, dtype
    )
    return result


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _call_of(
    x: Tensor, units: Tensor, strengths: Tensor, weights: tuple[Tensor | None, ...], activation: Activation
) -> _BankCall:
    up, down, up_bias, down_bias = weights
    assert up is not None and down is not None
    return _BankCall(
        tokens=x.shape[0],
        awake=units.shape[1],
        units=up.shape[0],
        width=x.shape[1],
        unit_width=down.shape[2],
        activation=activation.code,
        threads=torch.get_num_threads(),
        x_is_bf16=x.dtype == torch.bfloat16,
        weights_are_bf16=up.dtype == torch.bfloat16,
        x=x.data_ptr(),
        up=up.data_ptr(),
        down=down.data_ptr(),
        up_bias=_address(up_bias),
        down_bias=_address(down_bias),
        routes=units.data_ptr(),
        strengths=strengths.data_ptr(),
    )


def _run(name: str, call: _BankCall, use_tiles: bool, units: Tensor) -> None:
    library = native_library()
    assert library is not None
    code = getattr(library, name)(ctypes.byref(call), int(use_tiles))
    if code == 1:
        raise ValueError(f"units reach {int(units.max())}, expected -1 (nobody) to {call.units - 1}")
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
        library = native_library()
        assert library is not None
        rows, routes, strong = x.contiguous(), units.contiguous(), strengths.float().contiguous()
        weights = tuple(w if w is None else w.to(up.dtype).contiguous() for w in (up, down, up_bias, down_bias))
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
        _run("pragnosia_bank_forward", call, use_tiles, units)
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
        _run("pragnosia_bank_backward", call, ctx.use_tiles, units)
        result = [
            grads.get(name)
            for name in ("grad_x", "", "grad_strengths", "grad_up", "grad_down", "grad_up_bias", "grad_down_bias")
        ]
        if result[2] is not None:
            result[2] = result[2].to(ctx.dtypes[1])
        return (*result, None, None)
