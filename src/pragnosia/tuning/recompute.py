"""Recomputed: a piece of a model that keeps only what went in; on the way back it is computed again.

What a piece holds between its two passes is the memory of training. A piece that lies on disk is fetched for each pass
(`present`) and let go after it, so that the whole model need never be there. Chen et al. 2016, arXiv 1604.06174.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pragnosia.model.cortex import Cortex
from pragnosia.model.sparse import SparseFeedForward


def recompute(model: Cortex) -> None:
    """From now on every layer keeps only what goes into its halves."""
    for layer in model.model.layers:
        if layer.gate is None:
            layer.mixer, layer.mixer_norm = Recomputed(layer.mixer, layer.mixer_norm), nn.Identity()
        else:  # the gate reads behind the norm, too
            mixer: Any = Recomputed(layer.mixer)
            layer.mixer = mixer
        thinking: Any = layer.feed_forward
        if isinstance(thinking, SparseFeedForward):
            if thinking.shared is not None:
                shared: Any = Recomputed(thinking.shared)
                thinking.shared = shared
        else:
            layer.feed_forward, layer.feed_forward_norm = Recomputed(thinking, layer.feed_forward_norm), nn.Identity()


@final
class Recomputed(nn.Module):
    """`piece` after `norm`: stands where the piece stood, and takes its norm along. A piece returns (y, what else)."""

    def __init__(self, piece: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.piece, self.norm = piece, norm if norm is not None else nn.Identity()

    def forward(self, x: Tensor, *rest: Any) -> tuple[Any, ...]:
        """As the piece; but what it returns beside y is of the first pass, without slopes."""
        if not torch.is_grad_enabled():
            with self._present():
                outcome: tuple[Any, ...] = self.piece(self.norm(x), *rest)
            return outcome
        aside: list[Any] = []
        y = _Recompute.apply(x, self, rest, aside)  # type: ignore[no-untyped-call]
        return y, *aside

    def _present(self) -> AbstractContextManager[None]:
        present: AbstractContextManager[None] = getattr(self.piece, "present", nullcontext)()
        return present


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Recomputed, rest: tuple[Any, ...], aside: list[Any]) -> Tensor:
        with module._present():
            y, *others = module.piece(module.norm(x), *rest)
        aside += others
        ctx.module, ctx.rest = module, rest
        ctx.save_for_backward(x)
        return y  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        module, x = ctx.module, ctx.saved_tensors[0].detach().requires_grad_()
        with module._present():
            with torch.enable_grad():
                y = module.piece(module.norm(x), *ctx.rest)[0]
            torch.autograd.backward(y, grad)  # the piece's own parameters take their slopes here
        return x.grad, None, None, None
