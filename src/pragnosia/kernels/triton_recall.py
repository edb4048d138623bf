"""Long-term memory on a GPU: recalled rows weighted and summed, sparse slopes, rows that learn (Triton).

As source/recall.hpp does on a CPU: the table's gradient holds each named row once, whoever named it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from pragnosia.kernels.triton import supports

if TYPE_CHECKING:
    from torch import Tensor

_WIDEST = 8192
"""Numbers of a row that one program holds."""


def takes(table: Tensor, other: Tensor) -> bool:
    """Whether these programs run on a table and what goes with it."""
    return supports(table) and supports(other) and table.shape[1] <= _WIDEST and not torch.compiler.is_compiling()


def read(table: Tensor, rows: Tensor, strengths: Tensor) -> Tensor:
    """(T, D), single precision: as `kernels.read`."""
    table, rows, strengths = table.contiguous(), rows.contiguous(), strengths.float().contiguous()
    if torch.is_grad_enabled() and (table.requires_grad or strengths.requires_grad):
        summed: Tensor = _Read.apply(table, rows, strengths)  # type: ignore[no-untyped-call]
        return summed
    return _read(table, rows, strengths)


def step_rows(
    table: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    recalled: Tensor,
    *,
    rate: float,
    betas: tuple[float, float],
    epsilon: float,
) -> None:
    """As `kernels.step_rows`."""
    from pragnosia.kernels import triton_recall_programs as programs

    values = grad._values().contiguous()
    named, order, bounds = grouped(grad._indices()[0])
    if len(named):
        programs.step_rows[len(named),](
            *(table, values, named, order, bounds, first, second, recalled, table.shape[1]),
            *(rate, *betas, epsilon),
            BLOCK=_power(table.shape[1]),
        )


def grouped(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows are named (R,), in order; the slots (S,) that name them, row by row; where each begins (R + 1,)."""
    along, order = torch.sort(rows.reshape(-1), stable=True)
    named, counts = torch.unique_consecutive(along, return_counts=True)
    return named, order.int(), torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()


def _power(value: int) -> int:
    return max(16, 1 << (value - 1).bit_length())


def _stretch(width: int) -> int:
    return min(512, _power(width))


def _read(table: Tensor, rows: Tensor, strengths: Tensor) -> Tensor:
    from pragnosia.kernels import triton_recall_programs as programs

    (tokens, awake), width = rows.shape, table.shape[1]
    y, block = strengths.new_empty(tokens, width), _stretch(width)
    if tokens:
        programs.read_rows[tokens, -(-width // block)](table, rows, strengths, y, awake, width, BLOCK=block)
    return y


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, strengths: Tensor) -> Tensor:
        ctx.save_for_backward(table, rows, strengths)
        return _read(table, rows, strengths)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        from pragnosia.kernels import triton_recall_programs as programs

        table, rows, strengths = ctx.saved_tensors
        grad, (awake, width) = grad.float().contiguous(), (rows.shape[1], table.shape[1])
        block = _stretch(width)
        along = torch.empty_like(strengths) if ctx.needs_input_grad[2] else None
        if along is not None and rows.numel():
            programs.slopes[rows.numel(),](table, rows, grad, along, awake, width, BLOCK=block)
        if not ctx.needs_input_grad[0]:
            return None, None, along
        named, order, bounds = grouped(rows)
        slope = table.new_empty(len(named), width)
        if len(named):
            grid = len(named), -(-width // block)
            programs.row_slopes[grid](grad, strengths, order, bounds, slope, awake, width, BLOCK=block)
        sparse = torch.sparse_coo_tensor(named[None], slope, table.shape, is_coalesced=True, check_invariants=False)
        return sparse, None, along
