"""A router for benchmarks/sleep.py: competition trained straight through, beside the gated one that columns have.

    gated               strength = scale s          a column is as loud as it was chosen
    straight through    strength = scale / 2        whoever wins speaks at full strength, the others not at all

Both choose by s + balance, s = sigmoid(W x), and in both the slope of a strength is that of scale s: the second lets it
pass a step that has none (Bengio et al. 2013, arXiv 1308.3432). scale / 2 is what a gated column has at first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pragnosia import kernels
from pragnosia.model.organs import ThalamusConfig
from pragnosia.model.thalamus import Routing, Thalamus, own_precision, unit_load

NAME = "straight_through:StraightThrough"


class StraightThrough(Thalamus):
    """The A largest of s + b wake, all equally loud."""

    def __init__(self, width: int, num_units: int, organ: ThalamusConfig) -> None:
        super().__init__(width, num_units, organ)
        self.register_buffer("balance", torch.zeros(num_units))

    def forward(self, x: Tensor, awake: float) -> Routing:
        """Units (T, A), strengths (T, A), scores (T, U)."""
        organ = self.organ
        with own_precision(x):
            units, gated, scores = kernels.route(
                *(self.gist(x.to(self.weight.dtype)), self.weight, self.bias, self.steering, self.balance),
                awake=self.num_awake(awake),
                squash="sigmoid",
                renormalise=False,
                scale=organ.scale,
            )
        whole = (units >= 0) * (organ.scale / 2)
        return Routing(units, whole + (gated - gated.detach()), scores)

    @torch.no_grad()
    def rebalance(self, routing: Routing) -> None:
        """As the gated one's: b += rate * sign(mean load - load)."""
        load = unit_load(routing)
        self.balance += self.organ.balance_rate * torch.sign(load.mean() - load)
