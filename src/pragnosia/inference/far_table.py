"""Long-term memory that stays on disk: its rows come as they are recalled, and those recalled lately are here.

y_t = sum over recalled u of g_tu * row_u, the rows gathered first (kernels/far.py): the sums of a `Table`, bit for bit
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia import kernels
from pragnosia.errors import CheckpointError, UserError
from pragnosia.kernels.far import FarRows
from pragnosia.kernels.formats import Format

AT_ONCE = 4 << 20
"""Bytes of rows that a prompt gathers before it sums them."""


@dataclass(frozen=True)
class FarPlace:
    """Where a table's rows lie: rows of a format, from `offset` of a file."""

    file: Path
    offset: int
    rows: int
    width: int
    entry: Format

    @property
    def row_bytes(self) -> int:
        """From one row to the next."""
        return self.entry.bank_row_bytes(self.width)


@final
class RowsOnDisk(nn.Module):
    """Stands where the table of long-term memory stands."""

    def __init__(self, place: FarPlace, slots: int) -> None:
        """`slots` rows are in memory. Raises CheckpointError for a file that cannot be opened, UserError."""
        super().__init__()
        self.entry, self.width, self.num_units = place.entry, place.width, place.rows
        try:
            self.far = FarRows(place.file, place.offset, place.rows, place.row_bytes, slots)
        except OSError as error:
            raise CheckpointError(f"cannot read {place.file}: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{error}") from error

    def forward(self, units: Int[Tensor, "T A"], strengths: Float[Tensor, "T A"]) -> Float[Tensor, "T D"]:
        """As `Table.forward`. Raises CheckpointError where a row cannot be read."""
        awake, plain = units.shape[1], self.entry.plain_dtype
        step = max(1, AT_ONCE // (awake * self.far.row_bytes))
        sums = []
        for start in range(0, len(units), step):
            some, shares = units[start : start + step].cpu(), strengths[start : start + step].cpu()
            try:
                rows = self.far.gather(some.flatten())
            except OSError as error:
                raise CheckpointError(f"{error}") from error
            slots = torch.arange(some.numel()).view_as(some)
            if plain is not None:
                sums.append(kernels.read(rows.view(plain), slots, shares))
            else:
                sums.append(kernels.read_packed(rows, self.width, self.entry.name, slots, shares))
        return torch.cat(sums).to(strengths.device) if sums else strengths.new_zeros(0, self.width)
