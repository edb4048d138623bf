"""Processes: one run in several, each with its own rows. What is learned, and what triggers see, is of all together.

    torch.distributed.init_process_group("gloo", …)      in each of them, by whoever starts them; then
    train(config, out=…)                                 in each, the same configuration, a folder of its own

    grad <- mean of the processes' gradients             once per step, before it is clipped
    loss <- mean;  routings <- all, in order of rank     so that balances move alike, and growth is decided alike

Every process draws the same numbers by the same seed and makes the same steps, so the models stay equal to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, distributed, nn

from pragnosia.data import Place
from pragnosia.learning import Lesson


def here() -> Place:
    """Which process this is, of how many; the only one where none were joined."""
    if not distributed.is_available() or not distributed.is_initialized():
        return Place()
    return Place(distributed.get_rank(), distributed.get_world_size())


@torch.no_grad()
def share_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Every gradient becomes the mean over all processes; one that only some have counts as zero for the others."""
    several = here().world_size
    if several == 1:
        return
    learners = [weight for weight in weights if weight.requires_grad]
    device = learners[0].device
    there = torch.tensor([weight.grad is not None for weight in learners], dtype=torch.int32, device=device)
    distributed.all_reduce(there, distributed.ReduceOp.MAX)
    for weight, some in zip(learners, there.tolist(), strict=True):
        if not some:
            continue
        whole = torch.zeros_like(weight) if weight.grad is None else weight.grad
        if whole.is_sparse:
            whole = whole.coalesce()
        distributed.all_reduce(whole)
        weight.grad = whole / several


@torch.no_grad()
def share_lessons(lessons: Sequence[Lesson]) -> list[Lesson]:
    """What the batches of a step taught all processes: the mean loss, and who woke for anybody's tokens."""
    if here().world_size == 1:
        return list(lessons)
    return [
        replace(
            lesson,
            loss=_mean(lesson.loss),
            routings=tuple(None if routing is None else routing.each(_joined) for routing in lesson.routings),
            fired=None if lesson.fired is None else _mean(lesson.fired),
        )
        for lesson in lessons
    ]


def _mean(value: Tensor) -> Tensor:
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / here().world_size


def _joined(rows: Tensor) -> Tensor:
    """One process' rows behind another's; all have as many."""
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(here().world_size)]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
