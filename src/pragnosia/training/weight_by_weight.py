"""What our own optimisers share: one weight after the other; `grad_scale` as torch's fused AdamW has it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class WeightByWeight(torch.optim.Optimizer):
    """An optimiser that moves each weight by itself."""

    grad_scale: Tensor | None = None
    """What every gradient is divided by before it is used."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group)

    @abstractmethod
    def _move(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        """Move one weight."""
