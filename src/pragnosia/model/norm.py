"""RMSNorm: scale to unit root mean square. Zhang & Sennrich 2019 (arXiv 1910.07467).

    y = x / sqrt(mean(x^2) + eps) * weight
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """torch's, computed in the weight's precision at least: under autocast x may be narrower than the weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of x."""
        return F.rms_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.eps).to(x.dtype)
