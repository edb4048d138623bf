"""Back-propagation: the gradient of the mean next-token cross-entropy.

    grad += share * d/dw mean_t( -log p(x[t+1] | x[..t]) )

Between steps the routers are told who woke, and rebalance themselves (loss-free balancing, arXiv 2408.15664).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pragnosia.learning.rule import Lesson, Named
from pragnosia.model.exits import ExitLesson
from pragnosia.model.thalamus import Routing, joined

Routings = tuple[Routing | None, ...]


@final
class Backprop:
    """The reference rule: every weight learns from its exact gradient."""

    def __init__(self, *, autocast: torch.dtype | None = None) -> None:
        self.autocast = autocast

    def changes(self, model: nn.Module) -> Iterable[Named]:
        """Every parameter that asks for a gradient."""
        return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]

    def learn(
        self, model: nn.Module, tokens: Int[Tensor, "B T"], share: float, exits: ExitLesson | None = None
    ) -> Lesson:
        """One forward and one backward pass, of the end and of the exits that have a lesson."""
        with self.precision(tokens.device):
            given = {} if exits is None else {"lesson": exits}
            output = model(input_ids=tokens, labels=tokens, use_cache=False, **given)
        taught = output.loss if getattr(output, "exit_loss", None) is None else output.loss + output.exit_loss
        (taught * share).backward()
        return Lesson(output.loss.detach(), detached(output.routings or ()))

    def settle(self, model: nn.Module, lessons: Sequence[Lesson]) -> None:
        """Tell the routers who woke in the whole step."""
        rebalance = getattr(model, "rebalance", None)
        if rebalance is not None:
            rebalance(together([lesson.routings for lesson in lessons]))

    def precision(self, device: torch.device) -> AbstractContextManager[object]:
        """What a pass is computed in."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.autocast)


def detached(routings: Routings) -> Routings:
    """Who woke, without the slopes."""
    return tuple(None if routing is None else routing.each(torch.Tensor.detach) for routing in routings)


def together(parts: Sequence[Routings]) -> Routings:
    """The routings of several batches as those of one, layer by layer."""
    if len(parts) == 1:
        return parts[0]
    return tuple(
        joined([routing for routing in layer if routing is not None]) if layer[0] is not None else None
        for layer in zip(*parts, strict=True)
    )
