"""The last layer and its loss in one: mean cross-entropy of hidden W' without ever holding (N, V) logits.

    loss = mean_n (logsumexp_v z[n, v] - z[n, target_n])      z = hidden W'      dz = (softmax(z) - onehot) / N

The gradient is formed in the forward pass, chunk of rows by chunk of rows, while the logits are still in cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = 8 << 20


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
        grad_weight = torch.zeros_like(weight, dtype=wide) if need_weight else None
        counted = targets != ignore_index
        scale = 1.0 / counted.sum().to(wide)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        step = max(1, CHUNK_BYTES // (table.shape[0] * wide.itemsize))
        for start in range(0, rows.shape[0], step):
            part = slice(start, start + step)
            keep, aim = counted[part, None], targets[part, None].clamp(min=0)
            logits = torch.mm(rows[part], table.t()).to(wide)
            norm = logits.logsumexp(-1, keepdim=True)
            total += ((norm - logits.gather(1, aim)) * keep).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            logits.sub_(norm).exp_().scatter_add_(1, aim, torch.full_like(norm, -1.0))
            slope = logits.mul_(keep * scale).to(dtype)
            if grad_hidden is not None:
                torch.mm(slope, table, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += torch.mm(slope.t(), rows[part])
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
