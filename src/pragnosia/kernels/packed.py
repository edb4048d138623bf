"""A linear layer on packed rows (formats.py): y = x W' + b, and W is never there as a whole.

few rows     compiled (source/packed.hpp): the packed weights are read once; x is rounded to 8 bits a group of 32
many rows    a block of W at a time is unpacked, into x's dtype, and multiplied by torch
on a GPU     Triton programs that read the rows packed (triton_packed.py), where triton is installed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from pragnosia.kernels import triton_packed
from pragnosia.kernels.compiled import loaded_library, native_library
from pragnosia.kernels.formats import MANY_AT_ONCE, Format, check_rows, format_named, unpack

if TYPE_CHECKING:
    from torch import Tensor

FEW_ROWS = 48  # from so many on, a block unpacked for all is quicker than codes multiplied for each
FEW_PLAIN_ROWS = 5  # and with nothing to unpack
SCRATCH = 1 << 21  # weights unpacked at once: they stay in the caches
DTYPES = (torch.float32, torch.bfloat16)


def packed_linear(x: Tensor, packed: Tensor, depth: int, name: str, bias: Tensor | None = None) -> Tensor:
    """What F.linear gives with the rows unpacked: (..., K) -> (..., outs).

    A compiled product of few rows differs from that by the rounding of x to 8 bits, 0.5 % of a normally distributed
    output's size. Gradients reach x and the bias, not the rows. Raises ValueError on shapes that do not fit.
    """
    entry = format_named(name)
    check_rows(packed, depth, entry)
    if packed.dim() != 2 or x.shape[-1] != depth or (bias is not None and bias.shape != packed.shape[:1]):
        raise ValueError(
            f"x {tuple(x.shape)}, packed {tuple(packed.shape)} of depth {depth}, bias"
            f" {None if bias is None else tuple(bias.shape)}: expected (..., {depth}), (outs, bytes), (outs,)"
        )
    rows = x.numel() // max(1, depth)
    asks_gradient = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    if torch.compiler.is_compiling() or asks_gradient:
        weight = unpack(packed, depth, name, x.dtype)
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    if 0 < rows < (FEW_ROWS if entry.group else FEW_PLAIN_ROWS) and _is_compiled(x, packed):
        return _few(x, packed, depth, entry, bias)
    if x.is_cuda and triton_packed.supports(x, entry):
        return triton_packed.linear(x, packed, depth, entry, bias)
    if entry.plain_dtype is x.dtype:
        return F.linear(x, packed.view(x.dtype)[:, :depth], None if bias is None else bias.to(x.dtype))
    return _many(x.reshape(-1, depth), packed, depth, entry, bias).view(*x.shape[:-1], len(packed))


def _is_compiled(x: Tensor, packed: Tensor) -> bool:
    return x.is_cpu and packed.is_cpu and x.dtype in DTYPES and packed.is_contiguous() and native_library() is not None


def _few(x: Tensor, packed: Tensor, depth: int, entry: Format, bias: Tensor | None) -> Tensor:
    rows, out = x.contiguous(), x.new_empty((*x.shape[:-1], len(packed)))
    bias = None if bias is None else bias.float().contiguous()
    code = loaded_library().pragnosia_packed_linear(
        *(entry.code, rows.data_ptr(), x.dtype is torch.bfloat16, packed.data_ptr(), packed.shape[1]),
        *(None if bias is None else bias.data_ptr(), rows.numel() // depth, len(packed), depth),
        *(torch.get_num_threads(), out.data_ptr()),
    )
    if code:
        raise MemoryError("the compiled linear layer found no memory for its scratch")
    return out


def _many(x: Tensor, packed: Tensor, depth: int, entry: Format, bias: Tensor | None) -> Tensor:
    out = x.new_empty((len(x), len(packed)))
    step = max(64, (SCRATCH if x.is_cpu else MANY_AT_ONCE) // max(1, depth))
    scratch = x.new_empty((min(step, len(packed)), depth))
    for start in range(0, len(packed), step):
        block = packed[start : start + step]
        weight = unpacked_into(scratch[: len(block)], block, depth, entry)
        part = None if bias is None else bias[start : start + step].to(x.dtype)
        out[:, start : start + step] = F.linear(x, weight, part)
    return out


def unpacked_into(out: Tensor, packed: Tensor, depth: int, entry: Format) -> Tensor:
    """The values of packed rows (R, row_bytes), written to `out` (R, K); compiled where that can be."""
    if not _is_compiled(out, packed) or not out.is_contiguous():
        return out.copy_(unpack(packed, depth, entry.name, out.dtype))
    loaded_library().pragnosia_unpack(
        *(entry.code, packed.data_ptr(), packed.shape[1], len(packed), depth),
        *(torch.get_num_threads(), out.data_ptr(), out.dtype is torch.bfloat16),
    )
    return out
