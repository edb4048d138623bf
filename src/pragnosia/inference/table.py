"""A token table that stays on disk: a token needs one row of it, and a row is a page or two."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia.errors import CheckpointError
from pragnosia.kernels.formats import Format, unpack
from pragnosia.quantisation.index import PIECE


@final
class TableOnDisk(nn.Module):
    """Stands where the token table stands: rows of a format, from `offset` of a file, read as they are asked for."""

    def __init__(
        self,
        file: Path,
        offset: int,
        shape: tuple[int, int],
        entry: Format,
        dtype: torch.dtype,
        sums: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.unseen = dict(enumerate(sums))
        """Checksums of pieces that nothing was read from yet, by their number."""
        self.device = torch.device("cpu")
        """Where rows go."""
        self.file, self.offset, self.entry, self.dtype = file, offset, entry, dtype
        self.num_rows, self.width = shape
        self.row_bytes = entry.bank_row_bytes(self.width)
        try:
            self.descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
        if hasattr(os, "posix_fadvise"):  # nothing beside the row is worth reading
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        if hasattr(self, "descriptor") and os is not None:  # modules go before objects when Python ends
            os.close(self.descriptor)

    @property
    def weight(self) -> Tensor:
        """Of the table only type and device are here: what a state is made like."""
        return torch.empty(0, self.width, dtype=self.dtype, device=self.device)

    def row(self, token: int, out: Tensor) -> None:
        """Fill `out`, bytes of one row. Raises CheckpointError."""
        first, last = (at // PIECE for at in (token * self.row_bytes, (token + 1) * self.row_bytes - 1))
        try:
            for number in range(first, last + 1):
                self._check(number)
            got = os.preadv(self.descriptor, [memoryview(out.numpy())], self.offset + token * self.row_bytes)  # type: ignore[arg-type]
        except OSError as error:
            raise CheckpointError(f"cannot read {self.file}: {error.strerror}") from error
        if got != self.row_bytes:
            raise CheckpointError(f"{self.file} ends too soon")

    def _check(self, number: int) -> None:
        """Before its first row is used, a piece is held against its checksum. Raises OSError or CheckpointError."""
        known = self.unseen.get(number)
        if known is not None:  # until it was read and found right
            size = min(PIECE, self.num_rows * self.row_bytes - number * PIECE)
            if zlib.crc32(os.pread(self.descriptor, size, self.offset + number * PIECE)) != known:
                raise CheckpointError(f"{self.file} is damaged (a checksum of the token table is wrong); copy it again")
            self.unseen.pop(number, None)

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The tokens' rows; each is read once."""
        wanted, where = ids.cpu().unique(return_inverse=True)
        rows = torch.empty(len(wanted), self.row_bytes, dtype=torch.uint8)
        for out, token in zip(rows, wanted.tolist(), strict=True):
            self.row(token, out)
        plain = self.entry.plain_dtype
        values = rows.view(plain) if plain else unpack(rows, self.width, self.entry.name, self.dtype)
        return values.to(self.dtype)[where].to(self.device)
