"""Layers on packed rows: a linear layer, a token table and long-term memory that are never there as plain matrices."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia import kernels
from pragnosia.kernels.formats import Format, unpack


@final
class PackedLinear(nn.Module):
    """y = W x + b on packed rows; frozen."""

    rows: Tensor
    bias: Tensor | None

    def __init__(self, rows: Tensor, entry: Format, in_features: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self.entry, self.in_features, self.out_features = entry, in_features, rows.shape[0]
        self.register_buffer("rows", rows)
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> Float[Tensor, "O D"]:
        """The plain matrix in bfloat16, unpacked anew each time."""
        return self.weight_of(slice(None))

    def weight_of(self, outputs: slice) -> Float[Tensor, "P D"]:
        """Of some outputs alone."""
        return unpack(self.rows[outputs], self.in_features, self.entry.name, torch.bfloat16)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... O"]:
        """Shapes as `nn.Linear`."""
        return kernels.packed_linear(x, self.rows, self.in_features, self.entry.name, self.bias)


@final
class PackedEmbedding(nn.Module):
    """Rows of a packed table, in the type the model computes in; frozen."""

    rows: Tensor

    def __init__(self, rows: Tensor, entry: Format, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.entry, self.width, self.dtype = entry, width, dtype
        self.register_buffer("rows", rows)

    @property
    def weight(self) -> Tensor:
        """Of the table only type and device are there: what a state is made like."""
        return torch.empty(0, self.width, dtype=self.dtype, device=self.rows.device)

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The tokens' rows."""
        return unpack(self.rows[ids], self.width, self.entry.name, self.dtype)


@final
class PackedTable(nn.Module):
    """Long-term memory on packed rows: as `Table`, frozen."""

    rows: Tensor

    def __init__(self, rows: Tensor, entry: Format, width: int) -> None:
        super().__init__()
        self.entry, self.width = entry, width
        self.register_buffer("rows", rows)

    @property
    def num_units(self) -> int:
        """Rows."""
        return len(self.rows)

    def forward(self, units: Int[Tensor, "T A"], strengths: Float[Tensor, "T A"]) -> Float[Tensor, "T D"]:
        """The recalled rows' weighted sum; no other row is unpacked."""
        return kernels.read_packed(self.rows, self.width, self.entry.name, units.contiguous(), strengths)
