"""Numbers as GGUF files hold them: in blocks, made bfloat16 while they are read (source/blocks.hpp)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PIECE = 1 << 20
"""Bytes that one read fetches."""


class Blocks(NamedTuple):
    """One kind: the number ggml knows it by, how many numbers make a block, and a block's bytes."""

    code: int
    numbers: int
    num_bytes: int


BLOCKS = {
    "F32": Blocks(0, 1, 4),
    "F16": Blocks(1, 1, 2),
    "Q4_0": Blocks(2, 32, 18),
    "Q4_1": Blocks(3, 32, 20),
    "Q5_0": Blocks(6, 32, 22),
    "Q5_1": Blocks(7, 32, 24),
    "Q8_0": Blocks(8, 32, 34),
    "Q4_K": Blocks(12, 256, 144),
    "Q5_K": Blocks(13, 256, 176),
    "Q6_K": Blocks(14, 256, 210),
}


class Extent(NamedTuple):
    """`num_bytes` of a file from `offset`."""

    file: Path
    offset: int
    num_bytes: int
    blocks: Blocks | None = None
    """What becomes bfloat16 on its way; None for numbers that are computed with as they lie."""
    row_bytes: int = 0
    head: int = 0
    """Rows of a head whose rotary pairs lie as neighbours, of `row_bytes` each, and are put apart; 0: rows stay."""

    turned: int = 0
    """Bytes of a plain number of a matrix with rows of `row_bytes` that become columns on their way; 0: rows stay."""

    @property
    def size(self) -> int:
        """Bytes once they are here."""
        if self.blocks is None:
            return self.num_bytes
        return self.num_bytes // self.blocks.num_bytes * self.blocks.numbers * 2

    @property
    def words(self) -> tuple[int, ...]:
        """As the compiled code has it, but for the file."""
        code = -1 if self.blocks is None else self.blocks.code
        return self.offset, self.num_bytes, code, self.row_bytes, self.head, self.turned
