"""2:4 weights on a GPU: torch's semi-structured products, which its sparse tensor cores compute at twice the rate.

Packed rows are unpacked on the device, half of their values zeros, and compressed again into torch's own form: that of
cuSPARSELt where this build of torch has it, else that of CUTLASS, whose kernels know GPUs of compute capability 8
alone. Where neither does the matrix stays dense there, zeros and all.
"""

from __future__ import annotations

import warnings
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
)

from pragnosia.kernels.formats import unpack
from pragnosia.quantisation.layers import PackedLinear

ROWS, COLUMNS = 32, 64  # a matrix of other sizes stays dense there: what torch's kernels for 16 bits take


@final
class SemiStructuredLinear(nn.Module):
    """y = W x + b in bfloat16 on the device that `packed` is on, two of every four weights zero; frozen."""

    bias: Tensor | None

    def __init__(self, packed: PackedLinear, form: type[SparseSemiStructuredTensor] | None) -> None:
        super().__init__()
        self.in_features, self.out_features = packed.in_features, packed.out_features
        weight = unpack(packed.rows, packed.in_features, packed.entry.name, torch.bfloat16)
        fits = weight.shape[0] % ROWS == 0 and weight.shape[1] % COLUMNS == 0
        if form is not None and fits:
            with warnings.catch_warnings():  # that its API is a prototype is our concern, not that of who runs a model
                warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor", UserWarning)
                weight = form.from_dense(weight)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("bias", None if packed.bias is None else packed.bias.to(torch.bfloat16))

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... O"]:
        """Shapes as `nn.Linear`."""
        if not x.numel():
            return x.new_empty(*x.shape[:-1], self.out_features)
        # torch's product takes rows that lie one after the other, on two axes, and some of them
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16).contiguous()
        return F.linear(rows, self.weight, self.bias).to(x.dtype).view(*x.shape[:-1], self.out_features)


def on_tensor_cores(model: nn.Module, device: torch.device) -> None:
    """Put a 2:4 model on a device, its pruned layers as torch has them there. It cannot be moved from there again."""
    model.to(device)  # first: torch moves its compressed form nowhere but to the CPU
    form = sparse_form(device)
    pruned = [name for name, module in model.named_modules() if _is_pruned(module)]
    for name in pruned:
        packed = model.get_submodule(name)
        assert isinstance(packed, PackedLinear)
        model.set_submodule(name, SemiStructuredLinear(packed, form))


def sparse_form(device: torch.device) -> type[SparseSemiStructuredTensor] | None:
    """The form that this build of torch multiplies on this device; None where it has none."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    major, _ = torch.cuda.get_device_capability(device)
    if major >= 8 and torch.backends.cusparselt.is_available():
        return SparseSemiStructuredTensorCUSPARSELT
    return SparseSemiStructuredTensorCUTLASS if major == 8 else None


def _is_pruned(module: nn.Module) -> bool:
    return isinstance(module, PackedLinear) and module.entry.pruned
