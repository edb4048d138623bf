"""Recovery of a pruned model by a short training.

`rehearse`: a model that lost units learns with those it has. `recover`: two of every four weights work, all learn.

    forward     y = (m * W) x                    m: the two of every four neighbours of largest magnitude, chosen anew
    backward    dL/dW = dL/d(m * W) + decay (1 - m) * W

The straight-through slope lets a weight that was cut come back; the decay on those that are cut (SR-STE: Zhou et al.
2021, arXiv 2102.04010, eq. 9) keeps the choice from flickering. It ends with the weights that are cut at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pragnosia.errors import ConfigError, TrainingError
from pragnosia.kernels.pruned import kept
from pragnosia.learning.backprop import detached
from pragnosia.model.bank import Bank
from pragnosia.model.cortex import Cortex
from pragnosia.model.linear import Linear
from pragnosia.model.thalamus import Routing

DECAY = 2e-4
LEARNING_RATE = 2e-4
BATCH_TOKENS = 1024
Progress = Callable[[int, int], None]


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        mask = kept(weight)
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        weight: Tensor
        weight, mask = ctx.saved_tensors
        slope: Tensor = grad + DECAY * weight * ~mask
        return slope


@final
class TwoOfFour(nn.Module):
    """A parametrisation: the weights that work, of all that learn."""

    def forward(self, weight: Tensor) -> Tensor:
        """Zeros where a weight is cut."""
        chosen: Tensor = _Chosen.apply(weight)  # type: ignore[no-untyped-call]
        return chosen


def recover(
    model: Cortex,
    windows: Sequence[Tensor],
    steps: int,
    *,
    learning_rate: float = LEARNING_RATE,
    progress: Progress | None = None,
) -> None:
    """Train a model's layers for `steps` on windows of tokens (T,), pruned 2:4 all the while and at the end.

    Table, head, routers, norms and biases stay. Raises ConfigError without a step, TrainingError where the loss is no
    number.
    """
    if steps < 1:
        raise ConfigError(f"recovery takes 1 step or more, got {steps}")
    matrices = list(_matrices(model))
    model.requires_grad_(False)
    for owner, name in matrices:
        owner.get_parameter(name).requires_grad_(True)
        parametrize.register_parametrization(owner, name, TwoOfFour())
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for _ in _descend(model, learns, windows, steps, learning_rate, progress):
        pass
    for owner, name in matrices:
        parametrize.remove_parametrizations(owner, name, leave_parametrized=True)
    model.eval()


def rehearse(
    model: Cortex,
    windows: Sequence[Tensor],
    steps: int,
    *,
    learning_rate: float = LEARNING_RATE,
    progress: Progress | None = None,
) -> None:
    """Train all of a model's weights for `steps` on windows of tokens (T,); routers with a balance go on balancing.

    Raises ConfigError without a step, TrainingError where the loss is no number.
    """
    if steps < 1:
        raise ConfigError(f"recovery takes 1 step or more, got {steps}")
    model.requires_grad_(True)
    for routings in _descend(model, list(model.parameters()), windows, steps, learning_rate, progress):
        model.rebalance(routings)
    model.eval()


def _descend(
    model: Cortex,
    learns: list[nn.Parameter],
    windows: Sequence[Tensor],
    steps: int,
    rate: float,
    progress: Progress | None,
) -> Iterator[tuple[Routing | None, ...]]:
    """Back-propagation by AdamW at a rate that rises for ten steps and then falls to zero; who woke in each step."""
    tables = [weight for weight in learns if weight is getattr(model.model.hippocampus, "rows", None)]
    dense = [weight for weight in learns if not any(weight is table for table in tables)]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(dense, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
        *([torch.optim.SparseAdam(tables, lr=rate)] if tables else []),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda step: min(1.0, (step + 1) / 10) * (1 - step / steps))
        for one in optimisers
    ]
    model.train()
    for step, batch in zip(range(steps), _batches(windows), strict=False):
        output = model(batch, labels=batch, use_cache=False)
        loss = output.loss
        if not bool(loss.isfinite()):
            raise TrainingError(
                f"the loss of step {step + 1} is {float(loss.detach())}; the model or the text is damaged"
            )
        for one in optimisers:
            one.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(dense, 1.0)
        for one, schedule in zip(optimisers, schedules, strict=True):
            one.step()
            schedule.step()
        yield detached(output.routings)
        if progress is not None:
            progress(step + 1, steps)


def _matrices(model: Cortex) -> Iterator[tuple[nn.Module, str]]:
    """What is pruned: every matrix of the stack's layers but the routers'."""
    for layer in model.model.layers:
        for module in layer.modules():
            if isinstance(module, Linear):
                yield module, "weight"
            elif isinstance(module, Bank):
                yield from ((module, "up"), (module, "down"))


def _batches(windows: Sequence[Tensor]) -> Iterator[Tensor]:
    """Windows (B, T) of one length, drawn in an order of their own, for ever."""
    length = max(map(len, windows))
    whole = torch.stack([window for window in windows if len(window) == length])
    count = max(1, min(len(whole), BATCH_TOKENS // length))
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(whole), generator=generator)
        for start in range(0, len(order) - count + 1, count):
            yield whole[order[start : start + count]]
