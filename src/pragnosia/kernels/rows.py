"""Compiled work on single rows: a linear layer's for the few tokens of a decode step, and the losses of logits.

y = W x + b, weights in bfloat16 read once and in order        losses[n] = logsumexp z[n] - z[n, target_n]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pragnosia.kernels.compiled import loaded_library, native_library

if TYPE_CHECKING:
    from torch import Tensor

FEW_ROWS = 4  # TOKENS of source/few.hpp
FEW_WEIGHTS = 1 << 14  # a smaller layer is all overhead


def supports_few(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` takes these: a row or a few, no gradient, bfloat16 weights worth the call, lying in order.

    Not single precision: there torch's own product is as fast as the memory.
    """
    return (
        x.is_cpu
        and x.dtype is torch.bfloat16
        and weight.dtype is torch.bfloat16
        and weight.numel() >= FEW_WEIGHTS
        and 0 < x.numel() <= FEW_ROWS * weight.shape[1]
        and x.shape[-1] == weight.shape[1]
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and native_library() is not None
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight' + bias for up to FEW_ROWS rows."""
    rows = x.contiguous()
    outs, depth = weight.shape
    out = x.new_empty((*x.shape[:-1], outs))
    bias = None if bias is None else bias.to(weight.dtype).contiguous()
    is_bf16 = x.dtype is torch.bfloat16
    code = loaded_library().pragnosia_linear_few(
        *(rows.data_ptr(), is_bf16, weight.data_ptr(), None if bias is None else bias.data_ptr(), is_bf16),
        *(x.numel() // depth, outs, depth, torch.get_num_threads(), out.data_ptr()),
    )
    if code:
        raise MemoryError("the compiled linear layer found no memory for its scratch")
    return out


def supports_losses(logits: Tensor) -> bool:
    """Whether `losses_` takes these logits."""
    return logits.is_cpu and logits.dtype in (torch.float32, torch.bfloat16) and native_library() is not None


def losses_(logits: Tensor, targets: Tensor, ignore_index: int, scale: float, slopes: bool) -> Tensor:
    """The sum of the rows' cross-entropies; the logits become scale times its gradient where `slopes` is asked."""
    rows, vocabulary = logits.shape
    aims, losses = targets.long().contiguous(), torch.empty(rows)
    code = loaded_library().pragnosia_loss_rows(
        *(logits.data_ptr(), logits.dtype is torch.bfloat16, rows, vocabulary, aims.data_ptr(), ignore_index),
        *(scale, slopes, torch.get_num_threads(), losses.data_ptr()),
    )
    if code == 1:
        raise ValueError(
            f"targets reach {targets.min()} to {targets.max()}, expected 0 to {vocabulary - 1} or {ignore_index}"
        )
    if code:
        raise MemoryError("the compiled loss found no memory for a row of logits")
    return losses.sum()
