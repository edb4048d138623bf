"""Lobes that specialise: back-propagation over rows whose domain is known, and each domain has a lobe.

    experts   a row wakes its own lobe alone, and the routers are told whose it is:
              loss + supervision * mean over layers and tokens of -log( sum over units u of the lobe softmax(W x)_u )
    routers   the routers alone learn, by the loss, and choose freely
    all       everything learns

After MiCRo, arXiv 2506.13331, which trains its experts, its routers and all of it in this order. In the first stage a
row's other lobes are steered so far down that none of them wakes; what the router thinks of them is read off its
scores nevertheless.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia.learning.backprop import Backprop, Routings, detached, together
from pragnosia.learning.rule import Lesson, Named
from pragnosia.model.exits import ExitLesson
from pragnosia.model.thalamus import SoftmaxThalamus, Thalamus

STAGES = ("experts", "routers", "all")
FAR = 16.0
"""How far down [logits] a lobe is steered that is not to wake: its scores stay numbers, so its logits can be read."""
_LEAST = 1e-30


@dataclass(frozen=True)
class DomainLesson:
    """What a batch of rows is about, and what of it is to be learned."""

    lobes: tuple[str, ...]
    """Of each row."""
    stage: str
    supervision: float = 0.0


@final
class LobeRule:
    """Back-propagation that knows whose rows it reads."""

    def __init__(self, *, autocast: torch.dtype | None = None) -> None:
        self.backprop = Backprop(autocast=autocast)

    def changes(self, model: nn.Module) -> Iterable[Named]:
        """Every parameter that asks for a gradient."""
        return self.backprop.changes(model)

    def learn(
        self,
        model: nn.Module,
        tokens: Int[Tensor, "B T"],
        share: float,
        exits: ExitLesson | None = None,
        domains: DomainLesson | None = None,
    ) -> Lesson:
        """One forward and one backward pass of every row; in the first stage domain by domain."""
        if domains is None or domains.stage == "all":
            return self.backprop.learn(model, tokens, share, exits)
        if domains.stage == "routers":
            with routers_alone(model):
                return self.backprop.learn(model, tokens, share, exits)
        losses, routings = [], []
        for lobe in dict.fromkeys(domains.lobes):
            rows = torch.tensor([row for row, its in enumerate(domains.lobes) if its == lobe], device=tokens.device)
            part = len(rows) / len(tokens)
            loss, routing = self._taught(model, tokens[rows], share * part, lobe, domains.supervision)
            losses.append(loss * part)
            routings.append(routing)
        return Lesson(torch.stack(losses).sum(), together(routings))

    def settle(self, model: nn.Module, lessons: Sequence[Lesson]) -> None:
        """Tell the routers who woke."""
        self.backprop.settle(model, lessons)

    def _taught(
        self, model: Any, tokens: Int[Tensor, "B T"], share: float, lobe: str, supervision: float
    ) -> tuple[Tensor, Routings]:
        """Rows of one domain, by their own lobe."""
        with only(model, lobe), self.backprop.precision(tokens.device):
            output = model(input_ids=tokens, labels=tokens, use_cache=False)
            told = router_loss(model, output.routings, lobe)
        ((output.loss + supervision * told) * share).backward()
        return output.loss.detach(), detached(output.routings)


@contextmanager
def only(model: Any, lobe: str) -> Iterator[None]:
    """Within it no other lobe wakes as long as this one has units enough."""
    layers = list(model.experts())
    layers[0].lobe(lobe)  # raises for one that is none
    with ExitStack() as stack:
        for experts in layers:
            for other in experts.lobes:
                if other != lobe:
                    stack.enter_context(experts.steered(other, -FAR))
        yield


def router_loss(model: Any, routings: Routings, lobe: str) -> Float[Tensor, ""]:
    """Cross-entropy of the lobe under every router's softmax over units, mean over layers and tokens [nats]."""
    losses = []
    for layer, routing in zip(model.model.layers, routings, strict=True):
        if routing is not None and routing.routes and len(routing.passed.units):
            units = layer.feed_forward.lobe(lobe)
            logits = unsteered(layer.feed_forward.thalamus, routing.passed.scores)
            own = logits[:, units.start : units.stop].logsumexp(-1)
            losses.append((logits.logsumexp(-1) - own).mean())
    return torch.stack(losses).mean()


def unsteered(thalamus: Thalamus, scores: Float[Tensor, "T U"]) -> Float[Tensor, "T U"]:
    """The router's logits (of a softmax: up to a constant of the token), read off its scores."""
    scores = scores.float().clamp_min(_LEAST)
    logits = scores.log()
    if not isinstance(thalamus, SoftmaxThalamus):
        logits = logits - (1 - scores).clamp_min(torch.finfo(torch.float32).eps).log()
    return logits - thalamus.steering


@contextmanager
def routers_alone(model: nn.Module) -> Iterator[None]:
    """Within it nothing but routers asks for gradients."""
    others = [
        weight for name, weight in model.named_parameters() if weight.requires_grad and ".thalamus." not in f".{name}"
    ]
    for weight in others:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in others:
            weight.requires_grad_(True)
