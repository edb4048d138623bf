"""The last layer and its loss in one: mean cross-entropy of hidden W' without ever holding (N, V) logits.

    loss = mean_n (logsumexp_v z[n, v] - z[n, target_n])      z = hidden W'      dz = (softmax(z) - onehot) / N

The gradients are formed in the forward pass, chunk of rows by chunk of rows, while the logits are still in cache.
(torch 2.13 brings a `linear_cross_entropy` of its own; benchmarks/kernels.py runs it beside this one.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from pragnosia.kernels import rows as compiled_rows

if TYPE_CHECKING:
    from torch import Tensor

# Of one chunk's logits in fp32. Each chunk adds once to the whole gradient of the weight: few large ones beat many.
CHUNK_BYTES = 32 << 20


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Mean loss over the targets that count, in fp32; NaN where none counts, as torch has it.

    Raises ValueError on shapes that do not fit and, where it costs nothing to see, targets outside the vocabulary.
    """
    if hidden.shape != (targets.shape[0], weight.shape[1]):
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)}, expected {(targets.shape[0], weight.shape[1])} beside"
            f" targets {tuple(targets.shape)} and weight {tuple(weight.shape)}"
        )
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    result: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, ignore_index, dtype
    )
    return result


def _losses_and_slopes(
    logits: Tensor, targets: Tensor, ignore_index: int, scale: Tensor, slopes: bool
) -> tuple[Tensor, Tensor]:
    """The sum of a chunk's losses, and the logits' gradients (which may take their memory)."""
    if compiled_rows.supports_losses(logits):
        return compiled_rows.losses_(logits, targets, ignore_index, scale.item(), slopes), logits
    wide = logits.to(scale.dtype)
    counts = (targets != ignore_index)[:, None]
    aim = targets[:, None].where(counts, 0)
    norm = wide.logsumexp(-1, keepdim=True)
    total = (norm - wide.gather(1, aim)).where(counts, 0).sum()
    if not slopes:
        return total, logits
    wide = wide.sub(norm).exp_().scatter_add_(1, aim, torch.full_like(norm, -1.0))
    return total, wide.mul_(counts * scale).to(logits.dtype)


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
        scale = 1.0 / (targets != ignore_index).sum().to(wide)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        step = max(1, CHUNK_BYTES // (table.shape[0] * wide.itemsize))
        # one memory for the logits of all chunks, one for what each adds to the weight's gradient
        chunk = rows.new_empty(min(step, rows.shape[0]), table.shape[0])
        product = torch.empty_like(table) if need_weight else None
        for start in range(0, rows.shape[0], step):
            part = slice(start, start + step)
            logits = torch.mm(rows[part], table.t(), out=chunk[: rows[part].shape[0]])
            losses, slopes = _losses_and_slopes(logits, targets[part], ignore_index, scale, need_hidden or need_weight)
            total += losses
            if grad_hidden is not None:
                torch.mm(slopes, table, out=grad_hidden[part])
            if grad_weight is not None and product is not None:
                grad_weight += torch.mm(slopes.t(), rows[part], out=product)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # a plain loss.backward() hands over 1: the saved gradients are the answer, untouched
        plain = not grad.is_cuda and grad.item() == 1
        grads = (
            None if saved is None else (saved if plain else saved * grad).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*grads, None, None, None)
