"""RMS norm of rows, compiled: torch's own is five operations on the CPU, and ten more backward.

y = x / sqrt(mean(x^2) + eps) * weight
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from pragnosia.kernels.compiled import loaded_library, native_library

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16)


class _Rows(ctypes.Structure):
    """`NormRows` of source/norm.hpp."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("x_is_bf16", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("weight_is_bf16", "rows", "width", "threads")),
    )

    @classmethod
    def of(cls, x: Tensor, weight: Tensor) -> _Rows:
        width, bf16 = weight.numel(), torch.bfloat16
        about = (weight.dtype is bf16, x.numel() // max(width, 1), width, torch.get_num_threads())
        return cls(x.data_ptr(), x.dtype is bf16, weight.data_ptr(), *about)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """(..., D) of x normed and weighted (D,); in `dtype`, by default x's. Sums run in single precision at least."""
    dtype = dtype or x.dtype
    compiled = (
        not torch.compiler.is_compiling()
        and x.is_cpu
        and x.dtype in _DTYPES
        and weight.dtype in _DTYPES
        and dtype in _DTYPES
        and x.shape[-1:] == weight.shape
        and native_library() is not None
    )
    if not compiled:
        wide = torch.promote_types(x.dtype, weight.dtype)
        return torch.nn.functional.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps).to(dtype)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        result: Tensor = _RMSNorm.apply(x, weight, eps, dtype)  # type: ignore[no-untyped-call]
        return result
    return _forward(x.contiguous(), weight.contiguous(), eps, dtype, None)


def _forward(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, scales: Tensor | None) -> Tensor:
    y = torch.empty_like(x, dtype=dtype)
    kept = None if scales is None else scales.data_ptr()
    rows = _Rows.of(x, weight)
    _check(loaded_library().pragnosia_norm(ctypes.byref(rows), eps, y.data_ptr(), dtype is torch.bfloat16, kept))
    return y


def _check(code: int) -> None:
    if code:
        raise MemoryError("the compiled norm found no memory for a row")


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        scales = torch.empty(x.shape[:-1])
        ctx.save_for_backward(x, weight, scales)
        return _forward(x, weight, eps, dtype, scales)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, scales = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty(weight.shape) if ctx.needs_input_grad[1] else None
        rows = _Rows.of(x, weight)
        _check(
            loaded_library().pragnosia_norm_back(
                *(ctypes.byref(rows), scales.data_ptr(), grad.data_ptr(), grad.dtype is torch.bfloat16),
                *(None if slope is None else slope.data_ptr() for slope in (grad_x, grad_weight)),
            )
        )
        return grad_x, None if grad_weight is None else grad_weight.to(weight.dtype), None, None
