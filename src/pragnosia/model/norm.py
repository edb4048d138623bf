"""RMSNorm: scale to unit root mean square. Zhang & Sennrich 2019 (arXiv 1910.07467).

y = x / sqrt(mean(x^2) + eps) * weight
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pragnosia import kernels


class RMSNorm(nn.RMSNorm):
    """torch's, computed in the weight's precision at least.

    Under autocast the result is narrowed here, once: every product that reads it would else narrow it for itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x; its dtype, or autocast's."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        assert self.eps is not None
        return kernels.rms_norm(x, self.weight, self.eps, dtype)
