"""A bank on a GPU: slots sorted by unit on the device, tiles of slots through Triton programs; no wait for the host.

The weights stay in the precision they are kept in and are narrowed tile by tile under autocast, so that no narrow copy
of a sleeping unit is ever made. Which program serves which unit is computed on the device: the grid is an upper bound,
programs beyond the last tile leave at once.

A few tokens that wake many narrow units, as columns are when a model speaks, are read slot by slot in two launches:
sorting them would take longer than reading them. This was proven in Triton's interpreter, and has not run on a GPU.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torch import Tensor

    from pragnosia.kernels.activations import Activation

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FEW_TOKENS, NARROW = 4, 64
"""Up to so many tokens of units of at most so many neurons are read slot by slot where no slope is asked for."""
TILE = 4096  # weights that a program of these has in registers at once
LARGE_SHARED_MEMORY = 224 << 10  # bytes a program may have on H100 and H200; small cards have 48 to 99 KiB


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU (TRITON_INTERPRET=1); it cannot multiply bfloat16."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def supports(x: Tensor) -> bool:
    """Whether Triton takes these tensors."""
    place = x.is_cuda or (interpreted() and x.dtype != torch.bfloat16)
    return place and x.dtype in DTYPES and _installed()


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
    """The grouped sum, on the GPU."""
    if not supports(x):
        raise ValueError(f"backend 'triton' needs triton and a CUDA tensor, got x {x.dtype} on {x.device}")
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    tensors = (x, strengths, up, down, up_bias, down_bias)
    learning = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)
    if not learning and len(units) <= FEW_TOKENS and down.shape[2] <= NARROW:
        return _few(units, *tensors, activation, dtype)
    result: Tensor = _Bank.apply(  # type: ignore[no-untyped-call]
        x, units, strengths, up, down, up_bias, down_bias, activation, dtype
    )
    return result


def _few(
    units: Tensor,
    x: Tensor,
    strengths: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: Activation,
    dtype: torch.dtype,
) -> Tensor:
    """Slot by slot, summed in single precision; no slopes."""
    from pragnosia.kernels import triton_kernels as programs

    x, units, strengths, up, down = (tensor.contiguous() for tensor in (x, units, strengths, up, down))
    (tokens, awake), (_, width, unit_width) = units.shape, down.shape
    out = x.new_zeros(tokens, width, dtype=dtype)
    if not units.numel():
        return out
    active = x.new_empty(units.numel(), unit_width, dtype=torch.float32)
    neurons = 1 << (unit_width - 1).bit_length()
    at_once = min(TILE // neurons, 1 << (width - 1).bit_length())
    programs.few_up[units.numel(),](
        x, units, strengths, up, up_bias, active, width, unit_width, awake,
        code=activation.code, gated=activation.num_parts == 2, biased=up_bias is not None, BN=neurons, BK=at_once,
    )  # fmt: skip
    across = 16
    programs.few_down[tokens, -(-width // across)](
        active, units, strengths, down, down_bias, out, width, unit_width, awake,
        biased=down_bias is not None, BA=TILE // (across * neurons), BD=across, BN=neurons,
    )  # fmt: skip
    return out


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Slots sorted by unit and cut into tiles, all on the device."""

    order: Tensor  # (T*A,) flat slots by unit, those that woke nobody last
    tokens: Tensor  # (T*A,) their tokens
    bounds: Tensor  # (U + 1,) where each unit's slots begin
    tile_unit: Tensor  # (tiles,) -1 beyond the last
    tile_start: Tensor
    size: int  # slots in a tile

    @property
    def tiles(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.tile_unit, self.tile_start, self.bounds


def _plan(units: Tensor, num_units: int) -> _Plan:
    flat = units.reshape(-1)
    keys = torch.where(flat < 0, num_units, flat)
    _, order = torch.sort(keys, stable=True)
    edges = torch.arange(num_units + 1, device=flat.device)
    bounds = torch.searchsorted(keys[order], edges)
    load = flat.numel() // max(1, num_units)
    size = 128 if load >= 256 else 64 if load >= 48 else 32 if load >= 24 else 16
    ends = ((bounds.diff() + size - 1) // size).cumsum(0)  # tiles up to and with each unit
    tile = torch.arange(flat.numel() // size + min(num_units, flat.numel()), device=flat.device)
    unit = torch.searchsorted(ends, tile, right=True)
    known = unit.clamp(max=num_units - 1)
    before = torch.where(known > 0, ends[known - 1], 0)
    start = bounds[known] + (tile - before) * size
    return _Plan(
        order=order.int(),
        tokens=torch.div(order, units.shape[1], rounding_mode="floor").int(),
        bounds=bounds.int(),
        tile_unit=torch.where(unit < num_units, unit, -1).int(),
        tile_start=start.int(),
        size=size,
    )


@functools.cache
def _large(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 0) >= LARGE_SHARED_MEMORY


def _power(value: int, most: int) -> int:
    """The power of two that covers `value`, from 16 (the least a product takes) to `most`."""
    return min(most, 1 << max(4, (value - 1).bit_length()))


def _blocks(plan: _Plan, columns: int, depth: int, dtype: torch.dtype) -> dict[str, Any]:
    """Block sizes that fit the shared memory of small cards and keep large ones busy."""
    large = _large(plan.order.device)
    across, deep = _power(columns, 128 if large else 64), _power(depth, 64 if large and dtype.itemsize == 2 else 32)
    return {
        "BM": plan.size,
        "BN": across,
        "BK": deep,
        "num_warps": 8 if plan.size * across >= 128 * 64 else 4,
        "num_stages": 3 if large else 2,
    }


def _precision(dtype: torch.dtype) -> str:
    return "tf32" if dtype != torch.float32 or torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _grouped(
    rows: Tensor, weights: Tensor, plan: _Plan, *, transposed: bool, out: Tensor, gather: bool, scatter: bool,
    bias: Tensor | None = None, scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Tile after tile: out = scale (rows W + bias), or W' where `transposed`."""
    from pragnosia.kernels import triton_kernels as programs

    _, height, width = weights.shape
    depth, columns = (width, height) if transposed else (height, width)
    strides = (height * width, 1, width) if transposed else (height * width, width, 1)
    blocks = _blocks(plan, columns, depth, out.dtype)
    grid = (plan.tile_unit.numel(), -(-columns // blocks["BN"]))
    programs.grouped[grid](
        rows, plan.tokens, weights, bias, scale, out, plan.order, *plan.tiles, depth, columns, *strides,
        gathered=gather, scattered=scatter, biased=bias is not None, scaled=scale is not None,
        precision=_precision(out.dtype), **blocks,
    )  # fmt: skip
    return out


def _outer(
    a: Tensor, b: Tensor, like: Tensor, plan: _Plan, *, gather_a: bool, bias_like: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of a weight (U, M, N) and of its bias (U, M)."""
    from pragnosia.kernels import triton_kernels as programs

    num_units, height, width = like.shape
    out = torch.empty_like(like, memory_format=torch.contiguous_format)
    bias = None if bias_like is None else torch.empty_like(bias_like, memory_format=torch.contiguous_format)
    sizes = {"BM": _power(height, 64), "BN": _power(width, 64)}
    grid = (-(-height // sizes["BM"]), -(-width // sizes["BN"]), num_units)
    programs.outer[grid](
        a, plan.tokens, b, plan.tokens, scale, plan.order, out, bias, plan.bounds, height, width,
        a_gathered=gather_a, b_gathered=not gather_a, biased=bias is not None, bias_scaled=scale is not None,
        precision=_precision(b.dtype if gather_a else a.dtype), BK=32, **sizes,
    )  # fmt: skip
    return out, bias


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
        from pragnosia.kernels import triton_kernels as programs

        x, units, strengths, up, down = (tensor.contiguous() for tensor in (x, units, strengths, up, down))
        num_units, width, unit_width = down.shape
        plan = _plan(units, num_units)
        gated, slots = activation.num_parts == 2, units.numel()
        hidden = x.new_empty(slots, up.shape[1], dtype=dtype)
        active = x.new_empty(slots, unit_width, dtype=dtype)
        if slots:
            blocks = _blocks(plan, unit_width, width, dtype)
            programs.up_forward[plan.tile_unit.numel(), -(-unit_width // blocks["BN"])](
                x, plan.tokens, up, up_bias, hidden, active, *plan.tiles, width, unit_width,
                code=activation.code, gated=gated, biased=up_bias is not None,
                precision=_precision(dtype), **blocks,
            )  # fmt: skip
            out = _grouped(
                active, down, plan, transposed=True, out=x.new_zeros(slots, width, dtype=dtype), gather=False,
                scatter=True, bias=down_bias, scale=strengths,
            )  # fmt: skip
        else:
            out = x.new_zeros(slots, width, dtype=dtype)
        ctx.save_for_backward(x, units, strengths, up, down, up_bias, down_bias, hidden)
        ctx.plan, ctx.activation = plan, activation
        return out.view(*units.shape, width).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from pragnosia.kernels import triton_kernels as programs

        x, units, strengths, up, down, up_bias, down_bias, hidden = ctx.saved_tensors
        plan, activation = ctx.plan, ctx.activation
        needs = ctx.needs_input_grad
        grad, (slots, unit_width) = grad.contiguous(), (hidden.shape[0], down.shape[2])
        if not slots:
            zeros = (torch.zeros_like(t) if t is not None else None for t in (strengths, up, down, up_bias, down_bias))
            return torch.zeros_like(x), None, *zeros, None, None
        grad_active = _grouped(
            grad, down, plan, transposed=False, out=hidden.new_empty(slots, unit_width), gather=True, scatter=False
        )
        grad_hidden, active = torch.empty_like(hidden), torch.empty_like(grad_active)
        along = torch.zeros(strengths.shape, dtype=torch.float32, device=x.device)
        programs.activate_back[slots,](
            hidden, grad_active, strengths, plan.order, plan.bounds[-1:], grad_hidden, active, along, unit_width,
            grad, plan.tokens, units, down_bias, x.shape[1],
            code=activation.code, gated=activation.num_parts == 2, biased=down_bias is not None,
            BLOCK=_power(unit_width, 1024),
        )  # fmt: skip
        grad_x = grad_up = grad_down = grad_up_bias = grad_down_bias = None
        if needs[0]:
            rows = hidden.new_zeros(slots, x.shape[1])
            _grouped(grad_hidden, up, plan, transposed=False, out=rows, gather=False, scatter=True)
            grad_x = rows.view(*units.shape, -1).sum(1).to(x.dtype)
        if needs[3] or needs[5]:
            grad_up, grad_up_bias = _outer(grad_hidden, x, up, plan, gather_a=False, bias_like=up_bias, scale=None)
        if needs[4] or needs[6]:
            grad_down, grad_down_bias = _outer(
                grad, active, down, plan, gather_a=True, bias_like=down_bias, scale=strengths
            )
        return grad_x, None, along.to(strengths.dtype), grad_up, grad_down, grad_up_bias, grad_down_bias, None, None
