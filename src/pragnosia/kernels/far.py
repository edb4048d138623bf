"""Rows of a table on disk: those recalled lately are in memory, the others are read, many at once (source/far.hpp).

`gather` copies rows to where they are wanted, so that whoever sums them does as with a table in memory, bit for bit.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch

from pragnosia.kernels.compiled import loaded_library, native_library
from pragnosia.kernels.pool import PoolStats

if TYPE_CHECKING:
    from torch import Tensor

IN_FLIGHT = 128  # BATCH of source/far.hpp
_PAGE = 4096
_MOST = 1 << 31  # rows are told apart in 32 bits


class _Stats(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("hits", "misses", "bytes_read", "resident")),
        ("seconds_waiting", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("failed_row", "error")),
    )


@final
class FarRows:
    """Rows of equal size, one after the other from `offset` of a file; `slots` of them in memory."""

    def __init__(self, file: Path, offset: int, rows: int, row_bytes: int, slots: int) -> None:
        """Raises OSError for a file that cannot be opened, MemoryError, ValueError."""
        if native_library() is None:
            raise ValueError("rows on disk need the compiled kernels; install a C++ compiler (see pragnosia doctor)")
        if rows >= _MOST:
            raise ValueError(f"a table on disk has {rows} rows; it may have at most {_MOST - 1}")
        self.file, self.row_bytes, self.slots = file, row_bytes, slots
        self._library = loaded_library()
        error = ctypes.c_int64()
        self.address: int | None = self._library.pragnosia_far_new(
            os.fsencode(file), offset, rows, row_bytes, slots, ctypes.byref(error)
        )
        if not self.address:
            raise MemoryError(f"cannot reserve {slots} rows of {row_bytes} bytes; lower the budget")
        if error.value:
            raise OSError(error.value, os.strerror(error.value), str(file))

    @staticmethod
    def bytes_for(rows: int, row_bytes: int, slots: int) -> int:
        """Memory of so many slots, of where each row is, and of what is on its way."""
        windows = IN_FLIGHT * (-(-row_bytes // _PAGE) + 1) * _PAGE
        return slots * (row_bytes + 5) + 4 * rows + windows

    def gather(self, rows: Tensor) -> Tensor:
        """(N, row_bytes) uint8 of rows (N,), int64. Raises OSError where one cannot be read."""
        rows = rows.contiguous()
        out = torch.empty(len(rows), self.row_bytes, dtype=torch.uint8)
        if not self._library.pragnosia_far_gather(self.address, rows.data_ptr(), len(rows), out.data_ptr()):
            raise OSError(self.failure())
        return out

    def stats(self) -> PoolStats:
        """Counts so far."""
        stats = self._report()
        return PoolStats(stats.hits, stats.misses, stats.bytes_read, stats.resident, stats.seconds_waiting)

    def failure(self) -> str:
        """What could not be read last, in words; empty where all could."""
        stats = self._report()
        if not stats.error:
            return ""
        why = "the file ends too soon" if stats.error == -1 else os.strerror(stats.error)
        return f"cannot read row {stats.failed_row} of long-term memory from {self.file}: {why}"

    def _report(self) -> _Stats:
        stats = _Stats()
        self._library.pragnosia_far_report(self.address, ctypes.byref(stats))
        return stats

    def __del__(self) -> None:
        if getattr(self, "address", None):
            self._library.pragnosia_far_delete(self.address)
            self.address = None
