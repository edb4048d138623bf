"""Long-term memory's sparse compute: who is recalled by product keys, and what the recalled rows of a table sum to.

    s[h, p, i] = q[h, p] . key[h, p, i]        row i * side + j scores s[h, 0, i] + s[h, 1, j]
    rows[h] = the A rows with the largest scores, strengths their softmax          y = sum strengths * table[rows]

Product keys: Lample et al. 2019, arXiv 1907.05242. Backward visits only what was recalled; the table's gradient is
sparse, one row for each that was. Rows on a GPU are read, and learn, in Triton programs (triton_recall.py); who is
recalled there, and everything where there is no compiler, is plain torch.

T tokens, H heads, A rows recalled per head, K width of half a query, D width of a row.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from pragnosia.kernels import triton_recall
from pragnosia.kernels.compiled import loaded_library, native_library
from pragnosia.kernels.formats import FORMATS, unpack

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 2048  # tokens whose scores of all keys are here at once


class _Recall(ctypes.Structure):
    """`Recall` of source/recall.hpp."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("tokens", "heads", "side", "awake", "width", "threads"))


class _RowsCall(ctypes.Structure):
    """`RowsCall` of source/recall.hpp."""

    _fields_ = (
        *(("table", ctypes.c_void_p), ("is_bf16", ctypes.c_int64), ("width", ctypes.c_int64)),
        *(("rows", ctypes.c_void_p), ("strengths", ctypes.c_void_p)),
        *((name, ctypes.c_int64) for name in ("tokens", "awake", "threads")),
    )

    @classmethod
    def of(cls, table: Tensor, rows: Tensor, strengths: Tensor) -> _RowsCall:
        about = (table.data_ptr(), table.dtype is torch.bfloat16, table.shape[1], rows.data_ptr())
        return cls(*about, strengths.data_ptr(), *rows.shape, torch.get_num_threads())


class _RowsStep(ctypes.Structure):
    """`RowsStep` of source/recall.hpp."""

    _fields_ = (
        *(("table", ctypes.c_void_p), ("is_bf16", ctypes.c_int64), ("width", ctypes.c_int64)),
        *((name, ctypes.c_void_p) for name in ("first", "second", "recalled")),
        *((name, ctypes.c_double) for name in ("rate", "beta1", "beta2", "epsilon")),
        ("threads", ctypes.c_int64),
    )


def recall(query: Tensor, keys: Tensor, *, awake: int) -> tuple[Tensor, Tensor]:
    """Rows (T, H, A), int64, and strengths that sum to 1 in each head; of query (T, H, 2, K), keys (H, 2, side, K).

    Raises ValueError where a half has fewer keys than are to be recalled.
    """
    if awake > keys.shape[2]:
        raise ValueError(f"cannot recall {awake} rows by halves of {keys.shape[2]} keys; recall fewer")
    if not _compiled(query, keys):
        return recall_reference(query, keys, awake=awake)
    query, keys = query.float().contiguous(), keys.float().contiguous()
    if torch.is_grad_enabled() and (query.requires_grad or keys.requires_grad):
        rows, strengths = _ProductKeys.apply(query, keys, awake)  # type: ignore[no-untyped-call]
        return rows, strengths
    return _recall(query, keys, awake)


def recall_reference(query: Tensor, keys: Tensor, *, awake: int) -> tuple[Tensor, Tensor]:
    """The same in plain torch."""
    side = keys.shape[2]
    halves, places = torch.einsum("thpk,hpik->thpi", query.float(), keys.float()).topk(awake, -1)
    scores, pairs = (halves[:, :, 0, :, None] + halves[:, :, 1, None, :]).flatten(2).topk(awake, -1)
    first, second = places[:, :, 0].gather(-1, pairs // awake), places[:, :, 1].gather(-1, pairs % awake)
    return first * side + second, scores.softmax(-1)


def read(table: Tensor, rows: Tensor, strengths: Tensor) -> Tensor:
    """(T, D): rows (T, A) of the table (rows, D), weighted by strengths (T, A) and summed, in the strengths' type.

    The table's gradient is sparse.
    """
    if triton_recall.takes(table, strengths):
        return triton_recall.read(table, rows, strengths).to(strengths.dtype)
    if not _compiled(table, strengths):
        given = strengths.to(table.dtype)
        return F.embedding_bag(rows, table, per_sample_weights=given, mode="sum", sparse=True).to(strengths.dtype)
    table, rows, strengths = table.contiguous(), rows.contiguous(), strengths.float().contiguous()
    if torch.is_grad_enabled() and (table.requires_grad or strengths.requires_grad):
        summed: Tensor = _Read.apply(table, rows, strengths)  # type: ignore[no-untyped-call]
        return summed
    return _read(table, rows, strengths)


def read_packed(table: Tensor, width: int, name: str, rows: Tensor, strengths: Tensor) -> Tensor:
    """(T, D), single precision: the same of a table whose rows are packed, (rows, row_bytes) uint8 of a format."""
    slopes = torch.is_grad_enabled() and strengths.requires_grad
    if slopes or not (table.is_cpu and strengths.is_cpu) or native_library() is None:
        plain = unpack(table[rows.flatten()], width, name, torch.float32).view(*rows.shape, width)
        return torch.einsum("ta,tad->td", strengths.float(), plain)
    y, strengths = torch.empty(len(rows), width), strengths.float().contiguous()
    call = _RowsCall(
        *(table.data_ptr(), False, width, rows.data_ptr(), strengths.data_ptr(), *rows.shape),
        torch.get_num_threads(),
    )
    _check(
        loaded_library().pragnosia_read_packed_rows(
            ctypes.byref(call), FORMATS[name].code, table.shape[1], y.data_ptr()
        )
    )
    return y


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
    """Move the rows that a sparse gradient names, and their moments, in place: Adam as in training/row_wise.py.

    `table` (rows, D); `first` (rows, D), bfloat16; `second` (rows,), float32; `recalled` (rows,), int32.
    """
    named, slopes = grad._indices()[0], grad._values()
    if triton_recall.takes(table, slopes):
        triton_recall.step_rows(table, grad, first, second, recalled, rate=rate, betas=betas, epsilon=epsilon)
        return
    if _compiled(table, slopes):
        slopes = slopes.float().contiguous()
        found, order, bounds = grouped(named, len(table))
        about = (
            table.data_ptr(),
            table.dtype is torch.bfloat16,
            table.shape[1],
            *map(_address, (first, second, recalled)),
        )
        step = _RowsStep(*about, rate, *betas, epsilon, torch.get_num_threads())
        told = slopes, order, found, bounds
        loaded_library().pragnosia_step_rows(ctypes.byref(step), *map(_address, told), len(found))
        return
    grad = grad.coalesce()
    named, slopes = grad.indices()[0], grad.values().float()
    recalled[named] += 1
    count = recalled[named, None].float()
    moved = first[named].float().lerp(slopes, 1 - betas[0])
    squares = second[named].lerp(slopes.square().mean(1), 1 - betas[1])
    first[named], second[named] = moved.to(first.dtype), squares
    size = (squares[:, None] / (1 - betas[1] ** count)).sqrt() + epsilon
    table[named] -= (rate * moved / (1 - betas[0] ** count) / size).to(table.dtype)


def _compiled(*tensors: Tensor) -> bool:
    known = all(tensor.is_cpu and tensor.dtype in (torch.float32, torch.bfloat16) for tensor in tensors)
    return known and not torch.compiler.is_compiling() and native_library() is not None


def _check(code: int) -> None:
    if code:
        raise MemoryError("recalling found no memory for its scratch; recall for fewer tokens at once")


def _recall(query: Tensor, keys: Tensor, awake: int) -> tuple[Tensor, Tensor]:
    tokens, heads, _, width = query.shape
    side = keys.shape[2]
    rows = torch.empty(tokens, heads, awake, dtype=torch.long)
    strengths = torch.empty(tokens, heads, awake)
    by_half = keys.view(2 * heads, side, width).transpose(1, 2)
    for start in range(0, tokens, CHUNK):
        some = query[start : start + CHUNK]
        scores = torch.bmm(some.view(-1, 2 * heads, width).transpose(0, 1), by_half)
        about = _Recall(len(some), heads, side, awake, width, torch.get_num_threads())
        told = rows[start : start + CHUNK], strengths[start : start + CHUNK]
        _check(loaded_library().pragnosia_recall(ctypes.byref(about), scores.data_ptr(), *map(_address, told)))
    return rows, strengths


def _read(table: Tensor, rows: Tensor, strengths: Tensor) -> Tensor:
    y = torch.empty(len(rows), table.shape[1])
    loaded_library().pragnosia_read_rows(ctypes.byref(_RowsCall.of(table, rows, strengths)), y.data_ptr())
    return y


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class _ProductKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, awake: int) -> tuple[Tensor, Tensor]:
        rows, strengths = _recall(query, keys, awake)
        ctx.mark_non_differentiable(rows)
        ctx.save_for_backward(query, keys, rows, strengths)
        return rows, strengths

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        query, keys, rows, strengths = ctx.saved_tensors
        tokens, heads, awake = rows.shape
        about = _Recall(tokens, heads, keys.shape[2], awake, keys.shape[3], torch.get_num_threads())
        grad_query, grad_keys, slopes = torch.empty_like(query), torch.empty_like(keys), torch.empty_like(strengths)
        told = rows, strengths, grad.contiguous(), query, keys, slopes, grad_query, grad_keys
        loaded_library().pragnosia_recall_back(ctypes.byref(about), *map(_address, told))
        return grad_query, grad_keys, None


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, strengths: Tensor) -> Tensor:
        ctx.save_for_backward(table, rows, strengths)
        return _read(table, rows, strengths)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, rows, strengths = ctx.saved_tensors
        grad, learns = grad.float().contiguous(), ctx.needs_input_grad[0]
        grad_strengths = torch.empty_like(strengths) if ctx.needs_input_grad[2] else None
        named, order, bounds = grouped(rows, len(table)) if learns else (None, None, None)
        grad_rows = None if named is None else torch.empty(len(named), table.shape[1])
        call = _RowsCall.of(table, rows, strengths)
        loaded_library().pragnosia_rows_back(
            *(ctypes.byref(call), grad.data_ptr(), _address(order), _address(bounds)),
            *(0 if named is None else len(named), _address(grad_strengths), _address(grad_rows)),
        )
        if named is None or grad_rows is None:
            return None, None, grad_strengths
        slope = grad_rows.to(table.dtype)
        sparse = torch.sparse_coo_tensor(named[None], slope, table.shape, is_coalesced=True, check_invariants=False)
        return sparse, None, grad_strengths


def grouped(rows: Tensor, table_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows are named (R,), in order; the slots (S,) that name them, row by row; where each begins (R + 1,)."""
    slots = rows.numel()
    counts = torch.empty(table_rows + 1, dtype=torch.long)
    most = min(slots, table_rows)
    named, bounds = torch.empty(most, dtype=torch.long), torch.empty(most + 1, dtype=torch.long)
    order = torch.empty(slots, dtype=torch.int32)
    told = counts, order, named, bounds
    found = loaded_library().pragnosia_group_slots(rows.data_ptr(), slots, table_rows, *map(_address, told))
    return named[:found], order, bounds[: found + 1]
