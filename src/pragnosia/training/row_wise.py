"""Adam for a table of which a step recalls few rows: lazy, with one second moment for a whole row.

    m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) mean(g^2)
    row -= lr (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + eps)          n: how often this row was recalled so far

A row that was not recalled is not visited: it neither moves nor forgets its moments, and its bias corrections count
its own steps. m is kept in bfloat16, so that a row of D numbers carries 2 D + 8 bytes. Lazy Adam is as in torch's
SparseAdam; one second moment for a row as in Adafactor's and row-wise Adagrad's sparse tables (arXiv 1906.00091).
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from pragnosia import kernels
from pragnosia.training.weight_by_weight import WeightByWeight


@final
class RowAdam(WeightByWeight):
    """Over tables (rows, D) whose gradient is sparse. It is not clipped: a step has the same size at every scale."""

    def __init__(self, groups: Any, *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        state, grad = self.state[weight], weight.grad
        assert grad is not None
        if not state:
            state["first"] = torch.zeros_like(weight, dtype=torch.bfloat16)
            state["second"] = torch.zeros(len(weight), device=weight.device)
            state["recalled"] = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        kernels.step_rows(
            weight.data, grad, state["first"], state["second"], state["recalled"],
            rate=group["lr"], betas=group["betas"], epsilon=group["eps"],
        )  # fmt: skip
