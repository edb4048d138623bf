"""A bank by the compiled kernels (source/): the grouped sum of cpu.py, gathered, multiplied and scattered in cache.

Single precision runs in registers; bfloat16 (weights in bfloat16, or autocast over masters in single precision) runs
on the processor's tile unit where it has one, and in single precision where not. Gradients come back in the dtype of
what they belong to.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch.autograd.function import once_differentiable

from pragnosia.kernels.compiled import loaded_library, native_library
from pragnosia.kernels.memory import ask_huge_pages

if TYPE_CHECKING:
    from torch import Tensor

    from pragnosia.kernels.activations import Activation

Weights = tuple["Tensor | None", "Tensor | None", "Tensor | None", "Tensor | None"]
"""up, down, up_bias, down_bias."""
Inputs = tuple["Tensor | None", ...]
"""x, units, strengths and the weights."""

DTYPES = (torch.float32, torch.bfloat16)
PLAIN = 1  # the largest code of formats.py that is just numbers: fp32, bf16
FEW_TOKENS = 4  # TOKENS of source/few.hpp: tokens of a unit, or rows of a linear layer, that share one reading

# `BankCall` of source/slots.hpp: 21 words of any call, 3 that the passes keep, 8 of backward
_COMMON, _KEPT, _BACKWARD = struct.Struct("21q"), struct.Struct("3q"), struct.Struct("8q")
IN_REGISTERS, ON_TILES, FINE = range(3)  # Engine of source/native.cpp
FINE_NEURONS, FINE_BESIDE_TILES = 32, 16
"""A unit of at most so many is computed in slices of the width (source/fine.hpp); tiles are faster a little earlier."""


class Pool(Protocol):
    """Where units come from that lie on disk (pool.py)."""

    address: int | None

    def failure(self) -> str:
        """What could not be read last, in words."""


class Place(NamedTuple):
    """A bank as the compiled code is told of it; its weights are tensors, or a layer of a pool."""

    num_units: int
    width: int
    unit_width: int
    format: int
    """Code of formats.py."""
    dtype: torch.dtype
    """Of biases, and of weights that are plain numbers."""
    activation: Activation
    pool: Pool | None = None
    layer: int = 0


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
    num_units, width, unit_width = down.shape
    place = Place(num_units, width, unit_width, up.dtype is torch.bfloat16, up.dtype, activation)
    return bank_at(place, x, units, strengths, (up, down, up_bias, down_bias))


def bank_at(place: Place, x: Tensor, units: Tensor, strengths: Tensor, weights: Weights) -> Tensor:
    """The sum for a bank at `place`; up and down are None where they come from its pool, and then learn nothing.

    Raises OSError where a unit of a pool cannot be read.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    few = place.format <= PLAIN and units.numel() <= FEW_TOKENS * max(FEW_TOKENS, place.num_units)
    if few and not _wants_gradient(x, strengths, *weights):
        return _few(place, x, units, strengths, weights, dtype)
    result: Tensor = _Bank.apply(x, units, strengths, *weights, place, dtype)  # type: ignore[no-untyped-call]
    return result


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _few(place: Place, x: Tensor, units: Tensor, strengths: Tensor, weights: Weights, dtype: torch.dtype) -> Tensor:
    """Without gradients, units with a few tokens each: weights are read where they lie."""
    inputs = _laid_out(place, x, units, strengths, weights)
    out = x.new_empty(x.shape, dtype=dtype)
    call = _common(place, inputs, out) + bytes(_KEPT.size + _BACKWARD.size)
    _check(loaded_library().pragnosia_bank_few(call), units, place)
    return out


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As the compiled code reads it; asking first is cheaper than converting to the same."""
    return tensor if tensor.dtype is dtype and tensor.is_contiguous() else tensor.to(dtype).contiguous()


def _laid_out(place: Place, x: Tensor, units: Tensor, strengths: Tensor, weights: Weights) -> Inputs:
    """Rows without gaps, routes int64, strengths float, weights of one dtype."""
    plain = [None if weight is None else _plain(weight, place.dtype) for weight in weights]
    return x.contiguous(), _plain(units, torch.int64), _plain(strengths, torch.float32), *plain


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _common(place: Place, inputs: Inputs, out: Tensor | None) -> bytes:
    """The words every call has; `out` None in backward."""
    x, units, strengths, up, down, up_bias, down_bias = inputs
    assert x is not None
    assert units is not None
    bf16 = torch.bfloat16
    return _COMMON.pack(
        *(*units.shape, *place[:3], place.activation.code, torch.get_num_threads()),
        *(x.dtype is bf16, place.format, out is not None and out.dtype is bf16),
        *(x.data_ptr(), _address(up), _address(down), _address(up_bias), _address(down_bias)),
        *(units.data_ptr(), _address(strengths), _address(out)),
        *(0 if place.pool is None else place.pool.address, place.layer, place.activation.num_speaking or 0),
    )


def _check(code: int, units: Tensor, place: Place) -> None:
    if code == 1:
        raise ValueError(f"units reach {units.min()} to {units.max()}, expected -1 (nobody) to {place.num_units - 1}")
    if code == 3 and place.pool is not None:
        raise OSError(place.pool.failure())
    if code:
        raise MemoryError("the compiled bank found no memory for its scratch; wake fewer tokens at once")


class _Bank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        units: Tensor,
        strengths: Tensor,
        up: Tensor | None,
        down: Tensor | None,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        place: Place,
        dtype: torch.dtype,
    ) -> Tensor:
        library = loaded_library()
        inputs = _laid_out(place, x, units, strengths, (up, down, up_bias, down_bias))
        has_tiles = dtype == torch.bfloat16 and bool(library.pragnosia_tiles())
        engine = ON_TILES if has_tiles else IN_REGISTERS
        if place.unit_width <= (FINE_BESIDE_TILES if has_tiles else FINE_NEURONS):
            engine = FINE
        out = x.new_empty(x.shape, dtype=dtype)
        order = x.new_empty(units.numel(), dtype=torch.int32)
        bounds = x.new_empty(place.num_units + 1, dtype=torch.int32)
        hidden = None
        if any(ctx.needs_input_grad):
            rows = place.activation.num_parts * place.unit_width
            hidden = x.new_empty(units.numel(), rows, dtype=torch.bfloat16 if engine == ON_TILES else torch.float32)
        kept = _KEPT.pack(order.data_ptr(), bounds.data_ptr(), _address(hidden))
        call = _common(place, inputs, out) + kept + bytes(_BACKWARD.size)
        _check(library.pragnosia_bank_forward(call, engine), units, place)
        ctx.save_for_backward(*inputs, order, bounds, hidden)
        ctx.place, ctx.engine, ctx.strengths_dtype = place, engine, strengths.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, order, bounds, hidden = ctx.saved_tensors
        place, grad = ctx.place, grad.contiguous()
        need_x, _, need_strengths, *need_weights = ctx.needs_input_grad[:7]
        grad_x = torch.empty_like(inputs[0]) if need_x else None
        # a slot that woke nobody keeps its zero
        grad_strengths = torch.zeros_like(inputs[2]) if need_strengths else None
        grads = [torch.empty_like(w) if need else None for w, need in zip(inputs[3:], need_weights, strict=True)]
        for tensor in grads:
            if tensor is not None:
                ask_huge_pages(tensor)
        call = (
            _common(place, tuple(inputs), None)
            + _KEPT.pack(order.data_ptr(), bounds.data_ptr(), hidden.data_ptr())
            + _BACKWARD.pack(
                *(grad.dtype is torch.bfloat16, grad.data_ptr(), _address(grad_x)),
                *(_address(tensor) for tensor in grads),
                _address(grad_strengths),
            )
        )
        _check(loaded_library().pragnosia_bank_backward(call, ctx.engine), inputs[1], place)
        if grad_strengths is not None:
            grad_strengths = grad_strengths.to(ctx.strengths_dtype)
        return grad_x, None, grad_strengths, *grads, None, None
