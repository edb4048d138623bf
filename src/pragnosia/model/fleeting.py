"""Fleeting memory: attention sees the last tokens as they were, and older ones fade by a power of their age.

    weight of a key d tokens back ~ exp(q . k / sqrt(K)) (1 + max(0, d + 1 - intact)) ** -power

The newest token has d = 0, so that `intact` tokens, itself among them, lose nothing. Nothing here is learned. After
Thamma & Heilbron 2025, arXiv 2508.05803, who found that forgetting by a power law behind a short intact stretch helps
learning from little text; here the weights that are left share out the whole again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Fading:
    """What age takes from a score."""

    intact: int
    power: float

    def of_ages(self, ages: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Added to the score of a key so many tokens back; 0 for those that are intact, or yet to come."""
        return -self.power * (ages + 1 - self.intact).clamp_min(0).float().log1p()

    def mask(
        self,
        visible: Tensor | None,
        places: Int[Tensor, "*B T"],
        keys: Float[Tensor, "B H S K"],
        seen: int | Tensor,
        length: int,
    ) -> Float[Tensor, "*B T S"]:
        """What is added to the scores of the queries at `places` among `length` new tokens.

        Minus infinity where `visible`, or causality where that is None, shows nothing.
        """
        total = keys.shape[2]
        # Keys end with the newest token, but for a cache of fixed size, which has room behind it.
        behind = total - length
        before = seen.clamp(max=behind) if isinstance(seen, Tensor) else min(seen, behind)
        ages = (places + before)[..., None] - torch.arange(total, device=keys.device)
        if ages.dim() == 3:  # of every row its own places: (B, 1, T, S)
            ages = ages[:, None]
        shown = ages >= 0 if visible is None else visible
        return self.of_ages(ages).masked_fill(~shown, float("-inf")).to(keys.dtype)
