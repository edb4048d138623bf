"""A linear layer whose weights lie input by input, so that those of inputs that are zero need not be read.

y = b + sum over i with x_i != 0 of x_i W[:, i]        for one row of x, compiled (source/awake.hpp)

The matrix keeps its shape (outs, depth); only its numbers lie the other way round, which every product of torch takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pragnosia.kernels.compiled import loaded_library, native_library

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)


def by_input(weight: Tensor) -> Tensor:
    """The same matrix (outs, depth), its numbers input by input: strides (1, outs)."""
    return weight.t().contiguous().t()


def lies_by_input(weight: Tensor) -> bool:
    """Whether a matrix lies input by input; one that lies both ways counts as lying row by row."""
    return weight.dim() == 2 and not weight.is_contiguous() and weight.t().is_contiguous()


def supports(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` takes these: one row, no gradient, weights that lie input by input."""
    return (
        lies_by_input(weight)
        and x.is_cpu
        and weight.is_cpu
        and x.dtype in DTYPES
        and weight.dtype is x.dtype
        and x.numel() == x.shape[-1] == weight.shape[1]
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and native_library() is not None
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight' + bias for the one row of x; the weights of its zeros are not read."""
    row, (outs, depth) = x.contiguous(), weight.shape
    out = x.new_empty((*x.shape[:-1], outs))
    bias = None if bias is None else bias.to(weight.dtype).contiguous()
    is_bf16 = x.dtype is torch.bfloat16
    code = loaded_library().pragnosia_awake_linear(
        *(row.data_ptr(), is_bf16, weight.data_ptr(), None if bias is None else bias.data_ptr(), is_bf16),
        *(outs, depth, torch.get_num_threads(), out.data_ptr()),
    )
    if code:
        raise MemoryError("the compiled linear layer found no memory for its scratch")
    return out
