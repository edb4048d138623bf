"""2:4 weights on a GPU: torch's semi-structured products, which its sparse tensor cores compute at twice the rate.

Packed rows are unpacked on the device, half of their values zeros, and compressed again into torch's own form.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from pragnosia.kernels.formats import unpack
from pragnosia.quantisation.layers import PackedLinear

ROWS, COLUMNS = 32, 64  # a matrix of other sizes stays dense there: what torch's kernels for 16 bits take


@final
class SemiStructuredLinear(nn.Module):
    """y = W x + b in bfloat16 on a device, two of every four weights zero; frozen."""

    bias: Tensor | None

    def __init__(self, packed: PackedLinear, device: torch.device) -> None:
        super().__init__()
        self.in_features, self.out_features = packed.in_features, packed.out_features
        weight = unpack(packed.rows.to(device), packed.in_features, packed.entry.name, torch.bfloat16)
        fits = weight.shape[0] % ROWS == 0 and weight.shape[1] % COLUMNS == 0
        self.weight = nn.Parameter(to_sparse_semi_structured(weight) if fits else weight, requires_grad=False)
        self.register_buffer("bias", None if packed.bias is None else packed.bias.to(device, torch.bfloat16))

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... O"]:
        """Shapes as `nn.Linear`."""
        return F.linear(x.to(torch.bfloat16), self.weight, self.bias).to(x.dtype)


def on_tensor_cores(model: nn.Module, device: torch.device) -> None:
    """Put a 2:4 model on a device, its pruned layers as torch has them there."""
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear) and module.entry.pruned:
            model.set_submodule(name, SemiStructuredLinear(module, device))
    model.to(device)
