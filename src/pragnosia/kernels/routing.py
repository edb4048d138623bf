"""Who wakes: x -> scores -> the few units with the largest claims -> strengths, forward and backward in one visit.

    scores = squash(weight x + bias + steering)      squash: softmax or sigmoid
    units = the `awake` largest of scores + balance      strengths = their scores (over their sum), times scale

Backward visits only who woke, unless somebody asks for the slopes of all scores: the weights' slope of a router over
many units then costs what few do.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from pragnosia.kernels import reference
from pragnosia.kernels.compiled import loaded_library, native_library

if TYPE_CHECKING:
    from torch import Tensor

SQUASHES = {"softmax": 1, "sigmoid": 2}  # Router of source/route.hpp


class Routing(ctypes.Structure):
    """`Routing` of source/route.hpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("kind", "units", "slots", "renormalise")),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("balance", "cutoffs")),
    )


def route(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    steering: Tensor,
    balance: Tensor | None,
    *,
    awake: int,
    squash: str,
    renormalise: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Units (T, A), -1 where a slot wakes nobody; strengths (T, A); scores (T, U), for x (T, D) and weight (U, D).

    A unit of steering minus infinity scores exactly 0 and never wakes. Raises ValueError for an unknown squash.
    """
    if squash not in SQUASHES:
        raise ValueError(f"unknown squash {squash!r}. Available: {', '.join(SQUASHES)}")
    x = x.to(weight.dtype)
    learners = (x, weight) if bias is None else (x, weight, bias)
    wants = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in learners)
    steering, balance = steering.float(), None if balance is None else balance.float()
    compiled = (
        not torch.compiler.is_compiling()
        and x.is_cpu
        and (weight.dtype is torch.float32 or (weight.dtype is torch.bfloat16 and not wants))
        and not (steering.requires_grad and torch.is_grad_enabled())
        and native_library() is not None
    )
    if not compiled:
        logits = torch.nn.functional.linear(x, weight, bias).float() + steering
        return reference.choose(logits, balance, awake=awake, squash=squash, renormalise=renormalise, scale=scale)
    # a balance moves between steps, in place: backward never reads it
    shape = Routing(SQUASHES[squash], weight.shape[0], awake, renormalise, scale, _address(balance), None)
    if not wants:
        return _forward(x, weight, bias, steering, shape)
    units, strengths, scores = _Route.apply(x, weight, bias, steering, shape)  # type: ignore[no-untyped-call]
    return units, strengths, scores


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, steering: Tensor, shape: Routing
) -> tuple[Tensor, Tensor, Tensor]:
    scores = torch.nn.functional.linear(x, weight, bias).float()
    rows = scores.shape[0]
    units = torch.empty(rows, shape.slots, dtype=torch.long)
    strengths = torch.empty(rows, shape.slots)
    code = loaded_library().pragnosia_route(
        *(ctypes.byref(shape), steering.data_ptr(), scores.data_ptr(), rows, torch.get_num_threads()),
        *(units.data_ptr(), strengths.data_ptr()),
    )
    _check(code)
    return units, strengths, scores


def _check(code: int) -> None:
    if code:
        raise MemoryError("the compiled router found no memory for its scratch; route fewer tokens at once")


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, steering: Tensor, shape: Routing
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = x.contiguous(), weight.contiguous()
        units, strengths, scores = _forward(x, weight, bias, steering, shape)
        ctx.mark_non_differentiable(units)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, units, scores)
        ctx.shape, ctx.has_bias = shape, bias is not None
        return units, strengths, scores

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, _: None, grad_strengths: Tensor | None, grad_scores: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight, units, scores = ctx.saved_tensors
        shape: Routing = ctx.shape
        # without renormalising, a softmax lets every unit pull at every strength
        dense = grad_scores is not None or (shape.kind == SQUASHES["softmax"] and not shape.renormalise)
        if dense:
            return (
                *_dense_slopes(shape, x, weight, units, scores, grad_strengths, grad_scores, ctx.has_bias),
                None,
                None,
            )
        if grad_strengths is None:
            return (None,) * 5
        grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
        grad_bias = torch.empty(shape.units) if ctx.has_bias else None
        code = loaded_library().pragnosia_route_back(
            *(ctypes.byref(shape), scores.data_ptr(), units.data_ptr(), grad_strengths.contiguous().data_ptr()),
            *(x.data_ptr(), weight.data_ptr(), *x.shape, torch.get_num_threads()),
            *(grad_x.data_ptr(), grad_weight.data_ptr(), _address(grad_bias)),
        )
        _check(code)
        return grad_x, grad_weight, grad_bias, None, None


def _dense_slopes(
    shape: Routing,
    x: Tensor,
    weight: Tensor,
    units: Tensor,
    scores: Tensor,
    grad_strengths: Tensor | None,
    grad_scores: Tensor | None,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The slopes of x, weight and bias when every score has one."""
    slope = torch.zeros_like(scores) if grad_scores is None else grad_scores.clone()
    if grad_strengths is not None:
        awake = units >= 0
        pull = grad_strengths * shape.scale
        if shape.renormalise:
            chosen = scores.gather(1, units.clamp_min(0)) * awake
            total = chosen.sum(1, keepdim=True).clamp_min(reference.TINY)
            pull = (pull - (pull * chosen).sum(1, keepdim=True) / total) / total
        slope.scatter_add_(1, units.clamp_min(0), pull * awake)
    if shape.kind == SQUASHES["softmax"]:
        slope = scores * (slope - (slope * scores).sum(1, keepdim=True))
    else:
        slope = slope * scores * (1 - scores)
    return slope @ weight, slope.T @ x, slope.sum(0) if has_bias else None
