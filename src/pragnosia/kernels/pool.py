"""A bank on disk: a fixed pool of memory for the units that woke lately, filled by direct reads (source/pool.hpp).

A unit is one record of the same bytes as all others: its up rows, then its down rows. It may lie in several extents of
a file, as the experts of an unconverted checkpoint do. The results are those of the same bank in memory, bit for bit:
who is here and who comes late changes only the order in which units are visited, never the order of a sum.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch

from pragnosia.kernels.blocks import PIECE, Extent
from pragnosia.kernels.compiled import loaded_library, native_library
from pragnosia.kernels.formats import Format, unpack
from pragnosia.kernels.native import Place, bank_at

if TYPE_CHECKING:
    from torch import Tensor

    from pragnosia.kernels.activations import Activation

PAGE = 4096
AHEAD = 4  # units on their way before their turn
READERS = 4  # reads in flight: what it takes to keep a disk busy
HALF_LIFE = 64.0  # tokens in which the worth of a use halves
_FULL = "every slot of the pool is in use; give it more"


@dataclass(frozen=True)
class PoolStats:
    """What a pool of units, or the rows of a table on disk (far.py), did since it was made."""

    hits: int
    misses: int
    bytes_read: int
    resident: int
    """Here now."""
    seconds_waiting: float
    """That computing threads stood waiting for the disk, summed over them."""

    @property
    def hit_rate(self) -> float:
        """Share of what was asked for that was here."""
        return self.hits / max(self.hits + self.misses, 1)


class _Stats(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("hits", "misses", "bytes_read", "resident")),
        ("seconds_waiting", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("failed_layer", "failed_unit", "failed_file", "error")),
    )


@final
class UnitPool:
    """Slots for units of `layers` banks of `units` each; the caller sees to it that they fit the budget."""

    def __init__(self, layers: int, units: int, record_bytes: int, slots: int, *, half_life: float = HALF_LIFE) -> None:
        if native_library() is None:
            raise ValueError("units on disk need the compiled kernels; install a C++ compiler (see pragnosia doctor)")
        self.record_bytes, self.slots = record_bytes, slots
        self._files: dict[Path, int] = {}
        self._library = loaded_library()
        self.address: int | None = self._library.pragnosia_pool_new(
            layers, units, record_bytes, slots, READERS, half_life
        )
        if not self.address:
            raise MemoryError(f"cannot reserve {slots} slots of {record_bytes} bytes; lower the budget")

    @staticmethod
    def bytes_for(record_bytes: int, slots: int) -> int:
        """Memory of so many slots: each begins on a page."""
        return -(-record_bytes // PAGE) * PAGE * slots

    def place(self, layer: int, unit: int, extents: Sequence[Extent], sums: Sequence[int] = ()) -> None:
        """Say where a unit lies, and what its pieces of 1 MiB sum up to (CRC-32) where that is known.

        Raises OSError for a file that cannot be opened, ValueError for a unit larger than a record.
        """
        size = sum(extent.size for extent in extents)
        if size > self.record_bytes:
            raise ValueError(f"unit {unit} of layer {layer} is {size} bytes, a record {self.record_bytes}")
        if any(extent.head and extent.row_bytes > PIECE for extent in extents):
            raise ValueError(f"unit {unit} of layer {layer} has rows of more than {PIECE} bytes that change places")
        words = [word for extent in extents for word in (self._file(extent.file), *extent.words)]
        self._library.pragnosia_pool_place(
            *(self.address, layer, unit, (ctypes.c_int64 * len(words))(*words), len(extents)),
            *((ctypes.c_uint32 * len(sums))(*sums), len(sums)),
        )

    def move(self, layer: int, unit: int, extents: Sequence[Extent]) -> None:
        """A unit has changed and lies elsewhere: what is here of it is forgotten. Raises ValueError while held."""
        if not self._library.pragnosia_pool_forget(self.address, layer, unit):
            raise ValueError(f"unit {unit} of layer {layer} is held and cannot change; release it first")
        self.place(layer, unit, extents)

    def leave(self, path: Path) -> None:
        """Close a file in which no unit lies any more."""
        number = self._files.pop(path, None)
        if number is not None:
            self._library.pragnosia_pool_close(self.address, number)

    def turns(self, layer: int, units: Iterable[int], *, stay: int = 0) -> Generator[tuple[int, Tensor], None, None]:
        """Each unit in order with its record, (record_bytes,) uint8, there for its turn and the next `stay` ones.

        Those of the units to come that are not here are read meanwhile. Raises OSError where one cannot be read.
        """
        waiting, asked, had = deque(units), deque[tuple[int, bool]](), deque[int]()
        try:
            while waiting or asked:
                while waiting and sum(missed for _, missed in asked) < AHEAD:
                    missed = not self._library.pragnosia_pool_ready(self.address, layer, waiting[0])
                    if not self._request(layer, waiting[0]):
                        break
                    asked.append((waiting.popleft(), missed))
                if not asked:
                    raise MemoryError(_FULL)
                unit = asked[0][0]
                record = self._record(layer, unit)
                had.append(unit)
                asked.popleft()
                yield unit, record
                if len(had) > stay:
                    self.release(layer, had.popleft())
        finally:
            for unit in (*had, *(unit for unit, _ in asked)):
                self.release(layer, unit)

    def hold(self, layer: int, unit: int) -> Tensor:
        """A unit's record, (record_bytes,) uint8, which stays until as many `release`s. Raises OSError."""
        if not self._request(layer, unit):
            raise MemoryError(_FULL)
        try:
            return self._record(layer, unit)
        except OSError:
            self.release(layer, unit)
            raise

    def release(self, layer: int, unit: int) -> None:
        """Let go of a unit that was held."""
        self._library.pragnosia_pool_release(self.address, layer, unit)

    def ask(self, layer: int, units: Iterable[int]) -> None:
        """Begin to read units that will be wanted soon, as far as slots are free of use."""
        for unit in units:
            if not self._request(layer, unit):
                return
            self.release(layer, unit)

    def tick(self, tokens: int = 1) -> None:
        """Time passes: what was used before is worth less."""
        self._library.pragnosia_pool_tick(self.address, tokens)

    def _request(self, layer: int, unit: int) -> bool:
        return bool(self._library.pragnosia_pool_request(self.address, layer, unit))

    def _record(self, layer: int, unit: int) -> Tensor:
        address = self._library.pragnosia_pool_wait(self.address, layer, unit)
        if not address:
            raise OSError(self.failure())
        return self._slot(address)

    def first_slot(self) -> Tensor:
        """(record_bytes,) uint8: a place to measure from, whatever lies there."""
        return self._slot(self._library.pragnosia_pool_first_slot(self.address))

    def _slot(self, address: int) -> Tensor:
        return torch.frombuffer((ctypes.c_uint8 * self.record_bytes).from_address(address), dtype=torch.uint8)

    def keep(self, layer: int, unit: int, record: Tensor) -> None:
        """Put a unit here that lies nowhere else: its bytes are copied into a slot that it keeps.

        Raises ValueError for a wrong size, or where every slot is taken.
        """
        if record.dtype is not torch.uint8 or record.numel() != self.record_bytes or not record.is_contiguous():
            raise ValueError(f"unit {unit} of layer {layer} is no record of {self.record_bytes} bytes")
        address = self._library.pragnosia_pool_hold(self.address, layer, unit)
        if not address:
            raise ValueError(f"there is no slot left for unit {unit} of layer {layer}; all {self.slots} are taken")
        ctypes.memmove(address, record.data_ptr(), self.record_bytes)

    def stats(self) -> PoolStats:
        """Counts so far. Raises ValueError once it is closed."""
        if not self.address:
            raise ValueError("the pool is closed; ask for its counts before that")
        stats = self._report()
        return PoolStats(stats.hits, stats.misses, stats.bytes_read, stats.resident, stats.seconds_waiting)

    def failure(self) -> str:
        """What could not be read last, in words."""
        stats = self._report()
        path = next((path for path, number in self._files.items() if number == stats.failed_file), None)
        known = {-1: "the file ends too soon", -2: "its checksum is wrong, the file is damaged; copy it again"}
        why = known.get(stats.error) or os.strerror(stats.error)
        return f"cannot read unit {stats.failed_unit} of sparse layer {stats.failed_layer} from {path}: {why}"

    def close(self) -> None:
        """Give the memory back."""
        if self.address:
            self._library.pragnosia_pool_delete(self.address)
            self.address = None

    def __del__(self) -> None:
        if getattr(self, "address", None):
            self.close()

    def _file(self, path: Path) -> int:
        if path not in self._files:
            number = int(self._library.pragnosia_pool_open(self.address, os.fsencode(path)))
            if number < 0:
                raise OSError(-number, os.strerror(-number), str(path))
            self._files[path] = number
        return self._files[path]

    def _report(self) -> _Stats:
        stats = _Stats()
        self._library.pragnosia_pool_report(self.address, ctypes.byref(stats))
        return stats


@dataclass(frozen=True)
class PooledBank:
    """One bank of a pool: which layer, and what its units are like."""

    pool: UnitPool
    layer: int
    num_units: int
    width: int
    unit_width: int
    format: Format
    activation: Activation

    @property
    def row_bytes(self) -> tuple[int, int]:
        """From one row to the next, of up and of down."""
        down = self.format.down_shape(self.width, self.unit_width)
        return self.format.bank_row_bytes(self.width), self.format.bank_row_bytes(down[1])

    def matrices(self, record: Tensor) -> tuple[Tensor, Tensor]:
        """Up (R, D) and down (D, F) of a unit's record: views of plain numbers, else unpacked to bfloat16."""
        rows, (down_rows, depth) = (
            self.activation.num_parts * self.unit_width,
            self.format.down_shape(self.width, self.unit_width),
        )
        up_bytes, down_bytes = (n * size for n, size in zip((rows, down_rows), self.row_bytes, strict=True))
        parts = record[:up_bytes].view(rows, -1), record[up_bytes : up_bytes + down_bytes].view(down_rows, -1)
        plain = self.format.plain_dtype
        if plain is not None:
            return parts[0].view(plain), parts[1].view(plain)
        depths, name = (self.width, depth), self.format.name
        up, down = (unpack(part, depth, name, torch.bfloat16) for part, depth in zip(parts, depths, strict=True))
        return up, down.t() if self.format.is_turned(self.unit_width) else down

    def __call__(
        self, x: Tensor, units: Tensor, strengths: Tensor, up_bias: Tensor | None, down_bias: Tensor | None
    ) -> Tensor:
        """As `kernels.bank`; slopes reach x and strengths, the units are frozen. Raises OSError where reading fails."""
        dtype = self.format.plain_dtype or torch.float32
        shape = (self.num_units, self.width, self.unit_width)
        place = Place(*shape, self.format.code, dtype, self.activation, self.pool, self.layer)
        up, down = (None if bias is None else bias.detach() for bias in (up_bias, down_bias))
        return bank_at(place, x, units, strengths, (None, None, up, down))


def record_bytes(entry: Format, width: int, unit_width: int, activation: Activation) -> int:
    """Of one unit: its up rows, then its down rows, which in few bits may belong to neurons."""
    rows, depth = entry.down_shape(width, unit_width)
    return activation.num_parts * unit_width * entry.bank_row_bytes(width) + rows * entry.bank_row_bytes(depth)
