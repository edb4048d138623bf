"""Hippocampus: long-term memory in place of a feed-forward. A token recalls a few rows of a large table.

    q = (W x - center) / spread                         H queries, each of two halves
    row (i, j) scores q[0] . key[0, i] + q[1] . key[1, j]        the A best of each head are recalled
    y = sum over recalled rows of strength * row                 strengths: softmax of the head's A scores

Product keys, Lample et al. 2019, arXiv 1907.05242: n rows are found by 2 sqrt(n) keys. The table is one for all layers
that recall from it (Berges et al. 2024, arXiv 2412.09764), each by queries and keys of its own: a row costs nothing
until it is recalled, so the table may be as large as the memory, or the disk, allows.

Centre and spread of the queries make that many rows are asked for: batch normalisation, as in the paper. In training
they are the step's own, slopes and all; a speaking model has those of late steps, which move in `rebalance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia import kernels
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.linear import Linear
from pragnosia.model.memory_organs import HippocampusConfig
from pragnosia.model.thalamus import Routing, nobody, own_precision

if TYPE_CHECKING:
    from pragnosia.model.attention import Moment


_PACE, _LEAST = 0.1, 1e-5
"""Of the way to a step's own mean and spread."""


@final
class Hippocampus(nn.Module):
    """Feed-forward that remembers. Nobody wakes in it that could be balanced; what its router needs is in `asked`."""

    center: Tensor
    spread: Tensor
    """(H K,): of the queries of late, each number's mean and standard deviation."""
    num_observed: Tensor

    def __init__(self, config: PragnosiaConfig, layer: int) -> None:
        super().__init__()
        assert config.hippocampus is not None
        organ: HippocampusConfig = config.hippocampus
        self.organ = organ
        width = organ.num_heads * organ.key_width
        self.query = Linear(config.hidden_size, width, bias=False)
        self.keys = nn.Parameter(torch.empty(organ.num_heads * 2 * organ.side, organ.key_width // 2))
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.register_buffer("num_observed", torch.zeros(()))

    @property
    def recalled(self) -> int:
        """Rows per token, those of all heads."""
        return self.organ.num_heads * self.organ.num_awake

    def forward(self, x: Float[Tensor, "B T D"], moment: Moment) -> tuple[Float[Tensor, "B T D"], Routing | None]:
        """What the recalled rows sum to; in training, what was asked for."""
        assert moment.table is not None
        tokens = x.flatten(0, 1)
        with own_precision(x):  # a rounded score recalls another row
            query = self.query(tokens.to(self.query.weight.dtype)).float()
            asked = observed(query) if self.training else torch.stack([self.center, self.spread])
            rows, strengths = self.recall((query - asked[0]) / asked[1])
            y = moment.table(rows, strengths).view_as(x)
        return y.to(x.dtype), nobody(tokens, asked=asked.detach()[None]) if self.training else None

    def recall(self, query: Float[Tensor, "T HK"]) -> tuple[Int[Tensor, "T HA"], Float[Tensor, "T HA"]]:
        """The rows each normed query recalls, head by head and the strongest first, and how strongly."""
        heads, half, side = self.organ.num_heads, self.organ.key_width // 2, self.organ.side
        keys = self.keys.view(heads, 2, side, half)
        rows, strengths = kernels.recall(query.view(-1, heads, 2, half), keys, awake=self.organ.num_awake)
        return rows.flatten(1), strengths.flatten(1)

    @torch.no_grad()
    def rebalance(self, asked: Float[Tensor, "N 2 HK"]) -> None:
        """Move mean and spread towards those of the last step. Called between steps, never in forward."""
        self.num_observed += 1
        pace = max(_PACE, 1 / float(self.num_observed))
        center, spread = asked.mean(0)
        self.center.lerp_(center.to(self.center.dtype), pace)
        self.spread.lerp_(spread.to(self.spread.dtype), pace)


def observed(query: Float[Tensor, "T HK"]) -> Float[Tensor, "2 HK"]:
    """Mean and spread of a step's queries."""
    center = query.mean(0)
    return torch.stack([center, ((query - center).square().mean(0) + _LEAST**2).sqrt()])
