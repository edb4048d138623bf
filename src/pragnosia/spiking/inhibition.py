"""Lateral inhibition: of those above threshold the k furthest above it fire, the others are pushed down and are silent.

k winners take all: Majani et al. 1989, "On the k-winners-take-all network"; here within one step, exactly
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def inhibited(
    spikes: Float[Tensor, "B N"], margin: Float[Tensor, "B N"], *, winners: int, inhibition_mv: float
) -> Float[Tensor, "B N"]:
    """Millivolts by which the losers go down; 0 for who wins, and for who was not above threshold.

    Of equals the lower number wins.
    """
    standing = torch.where(spikes > 0, margin, -torch.inf)
    order = standing.argsort(dim=-1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(-1, order, torch.arange(order.shape[-1]).expand_as(order))
    return torch.where((spikes > 0) & (place >= winners), inhibition_mv, 0.0)
