"""The last layer and its loss in one: mean cross-entropy of hidden W' without ever holding (N, V) logits.

    loss = mean_n (logsumexp_v z[n, v] - z[n, target_n])      z = hidden W'      dz = (softmax(z) - onehot) / N

The gradient is formed in the forward pass, chunk of rows by chunk of rows; on the CPU one compiled visit turns a row of
logits into its slopes while it is in cache.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from pragnosia.kernels.compiled import native_library

if TYPE_CHECKING:
    from torch import Tensor

# Of one chunk's logits. Each chunk adds once to the whole gradient of the weight, so few large ones beat many small.
CHUNK_BYTES = 32 << 20


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Mean loss over the targets that count, in fp32; NaN where none counts, as torch does."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    result: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, ignore_index, dtype)  # type: ignore[no-untyped-call]
    return result


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, dtype: torch.dtype
    ) -> Tensor:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        rows, table = hidden.to(dtype), weight.to(dtype)
        grad_hidden = torch.empty_like(rows) if need_hidden else None
        grad_weight: Tensor | None = None
        aims = targets.where(targets != ignore_index, -1).long().contiguous()
        scale = 1.0 / (aims >= 0).sum().to(wide)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        step = max(1, CHUNK_BYTES // (table.shape[0] * wide.itemsize))
        for start in range(0, rows.shape[0], step):
            part = slice(start, start + step)
            slopes, loss = _slopes(torch.mm(rows[part], table.t()), aims[part], scale, wide)
            total += loss
            if grad_hidden is not None:
                torch.mm(slopes, table, out=grad_hidden[part])
            if need_weight:
                product = torch.mm(slopes.t(), rows[part])
                grad_weight = product.to(wide) if grad_weight is None else grad_weight.add_(product)
        if need_weight and grad_weight is None:  # no rows at all
            grad_weight = torch.zeros_like(weight, dtype=wide)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = (
            None if saved is None else (saved * grad).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*grads, None, None, None)


def _slopes(logits: Tensor, aims: Tensor, scale: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """scale * (softmax - onehot), in the logits' dtype, and the sum of the losses; an aim of -1 does not count."""
    library = native_library() if logits.device.type == "cpu" else None
    if library is not None and logits.dtype in (torch.float32, torch.bfloat16):
        if int(aims.max()) >= logits.shape[1]:
            raise ValueError(f"a target is {int(aims.max())}, expected 0 to {logits.shape[1] - 1} or the ignored index")
        losses = torch.empty(logits.shape[0])
        code = library.pragnosia_softmax(
            ctypes.c_void_p(logits.data_ptr()),
            ctypes.c_int(logits.dtype == torch.bfloat16),
            ctypes.c_int64(logits.shape[0]),
            ctypes.c_int64(logits.shape[1]),
            ctypes.c_void_p(aims.data_ptr()),
            ctypes.c_float(float(scale)),
            ctypes.c_int64(torch.get_num_threads()),
            ctypes.c_void_p(losses.data_ptr()),
        )
        if code:
            raise MemoryError(f"no memory for a row of {logits.shape[1]} logits")
        return logits, losses.sum()
    keep, aim = (aims >= 0)[:, None], aims[:, None].clamp(min=0)
    scores = logits.to(wide)
    norm = scores.logsumexp(-1, keepdim=True)
    loss = ((norm - scores.gather(1, aim)) * keep).sum()
    scores = (scores - norm).exp_().scatter_add_(1, aim, torch.full_like(norm, -1.0))
    return scores.mul_(keep * scale).to(logits.dtype), loss
