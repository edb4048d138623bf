"""Recovery of a pruned model by a short training: two of every four weights work, all of them learn.

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
from pragnosia.model.bank import Bank
from pragnosia.model.cortex import Cortex
from pragnosia.model.linear import Linear

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


def recover(model: Cortex, windows: Sequence[Tensor], steps: int, *, progress: Progress | None = None) -> None:
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
    optimiser = torch.optim.AdamW(learns, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / 10) * (1 - step / steps))
    model.train()
    for step, batch in zip(range(steps), _batches(windows), strict=False):
        loss = model(batch, labels=batch).loss
        if not bool(loss.isfinite()):
            raise TrainingError(
                f"the loss of step {step + 1} is {float(loss.detach())}; the model or the text is damaged"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learns, 1.0)
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, steps)
    for owner, name in matrices:
        parametrize.remove_parametrizations(owner, name, leave_parametrized=True)
    model.eval()


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
