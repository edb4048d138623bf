"""A bank on disk: a fixed pool of memory for the units that woke lately, filled by direct reads (source/pool.hpp).

A unit is one record of the same bytes as all others: its up rows, then its down rows. It may lie in several extents of
a file, as the experts of an unconverted checkpoint do. The results are those of the same bank in memory, bit for bit:
who is here and who comes late changes only the order in which units are visited, never the order of a sum.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch.autograd.function import once_differentiable

from pragnosia.kernels.compiled import loaded_library, native_library
from pragnosia.kernels.formats import Format
from pragnosia.kernels.native import FEW_TOKENS

if TYPE_CHECKING:
    from torch import Tensor

    from pragnosia.kernels.activations import Activation

PAGE = 4096
READERS = 4  # reads in flight: what it takes to keep a disk busy
HALF_LIFE = 64.0  # tokens in which the worth of a use halves
_CALL = struct.Struct("31q")  # BankCall of source/slots.hpp


@dataclass(frozen=True)
class Extent:
    """`num_bytes` of a file from `offset`."""

    file: Path
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class PoolStats:
    """What a pool did since it was made."""

    hits: int
    misses: int
    bytes_read: int
    resident: int
    """Units here now."""
    seconds_waiting: float
    """That computing threads stood waiting for the disk, summed over them."""

    @property
    def hit_rate(self) -> float:
        """Share of the units asked for that were here."""
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

    def __init__(self, layers: int, units: int, record_bytes: int, slots: int) -> None:
        if native_library() is None:
            raise ValueError("units on disk need the compiled kernels; install a C++ compiler (see pragnosia doctor)")
        self.record_bytes, self.slots = record_bytes, slots
        self._files: dict[Path, int] = {}
        self._library = loaded_library()
        self.address: int | None = self._library.pragnosia_pool_new(
            layers, units, record_bytes, slots, READERS, HALF_LIFE
        )
        if not self.address:
            raise MemoryError(f"cannot reserve {slots} slots of {record_bytes} bytes; lower the budget")

    @staticmethod
    def bytes_for(record_bytes: int, slots: int) -> int:
        """Memory of so many slots: each begins on a page."""
        return -(-record_bytes // PAGE) * PAGE * slots

    def place(self, layer: int, unit: int, extents: Sequence[Extent], sums: Sequence[int] = ()) -> None:
        """Say where a unit lies, and what its pieces of 1 MiB sum up to (CRC-32) where that is known.

        Raises OSError for a file that cannot be opened, ValueError for a wrong size.
        """
        if sum(extent.num_bytes for extent in extents) != self.record_bytes:
            raise ValueError(f"unit {unit} of layer {layer} does not fill a record of {self.record_bytes} bytes")
        words = [word for e in extents for word in (self._file(e.file), e.offset, e.num_bytes)]
        self._library.pragnosia_pool_place(
            *(self.address, layer, unit, (ctypes.c_int64 * len(words))(*words), len(extents)),
            *((ctypes.c_uint32 * len(sums))(*sums), len(sums)),
        )

    def stats(self) -> PoolStats:
        """Counts so far."""
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
    """One bank of a pool: which layer, and the shape of its units."""

    pool: UnitPool
    layer: int
    num_units: int
    width: int
    unit_width: int
    format: Format
    activation: Activation

    @property
    def dtype(self) -> torch.dtype:
        """Of biases, and of weights where they are plain numbers."""
        return self.format.plain_dtype or torch.float32

    @property
    def row_bytes(self) -> tuple[int, int]:
        """From one row to the next, of up and of down; plain numbers lie without gaps."""
        plain = self.format.plain_dtype
        depths = (self.width, self.unit_width)
        up, down = (d * plain.itemsize if plain else self.format.row_bytes(d) for d in depths)
        return up, down

    @property
    def record_bytes(self) -> int:
        """Of one unit."""
        up, down = self.row_bytes
        return self.activation.num_parts * self.unit_width * up + self.width * down

    def __call__(
        self, x: Tensor, units: Tensor, strengths: Tensor, up_bias: Tensor | None, down_bias: Tensor | None
    ) -> Tensor:
        """As `kernels.bank`; slopes reach x and strengths, the units are frozen. Raises OSError where reading fails."""
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        learns = torch.is_grad_enabled() and (x.requires_grad or strengths.requires_grad)
        few = units.numel() <= FEW_TOKENS * max(FEW_TOKENS, self.num_units)
        if few and not learns and self.format.plain_dtype is not None:
            return self._few(x, units, strengths, up_bias, down_bias, dtype)
        result: Tensor = _Pooled.apply(x, units, strengths, up_bias, down_bias, self, dtype)  # type: ignore[no-untyped-call]
        return result

    def _few(
        self,
        x: Tensor,
        units: Tensor,
        strengths: Tensor,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """For few tokens, as `native.bank` does it."""
        inputs = _laid_out(self, x, units, strengths, up_bias, down_bias)
        out = torch.empty_like(inputs[0], dtype=dtype)
        _check(loaded_library().pragnosia_bank_few(_CALL.pack(*_words(self, inputs, out), *[0] * 11)), self, units)
        return out


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        units: Tensor,
        strengths: Tensor,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        bank: PooledBank,
        dtype: torch.dtype,
    ) -> Tensor:
        inputs = _laid_out(bank, x, units, strengths, up_bias, down_bias)
        x, units = inputs[0], inputs[1]
        use_tiles = dtype is torch.bfloat16 and bool(loaded_library().pragnosia_tiles())
        out = x.new_empty(x.shape, dtype=dtype)
        order = x.new_empty(units.numel(), dtype=torch.int32)
        bounds = x.new_empty(bank.num_units + 1, dtype=torch.int32)
        hidden = None
        if any(ctx.needs_input_grad):
            rows = bank.activation.num_parts * bank.unit_width
            hidden = x.new_empty(units.numel(), rows, dtype=torch.bfloat16 if use_tiles else torch.float32)
        call = _CALL.pack(*_words(bank, inputs, out), *_kept(order, bounds, hidden), *[0] * 8)
        _check(loaded_library().pragnosia_bank_forward(call, use_tiles), bank, units)
        ctx.save_for_backward(*inputs, order, bounds, hidden)
        ctx.bank, ctx.use_tiles, ctx.strengths_dtype = bank, use_tiles, strengths.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, order, bounds, hidden = ctx.saved_tensors
        bank, grad = ctx.bank, grad.contiguous()
        grad_x = torch.empty_like(inputs[0]) if ctx.needs_input_grad[0] else None
        grad_strengths = torch.zeros_like(inputs[2]) if ctx.needs_input_grad[2] else None
        slopes = (grad.dtype is torch.bfloat16, grad.data_ptr(), _address(grad_x), 0, 0, 0, 0, _address(grad_strengths))
        call = _CALL.pack(*_words(bank, tuple(inputs), None), *_kept(order, bounds, hidden), *slopes)
        _check(loaded_library().pragnosia_bank_backward(call, ctx.use_tiles), bank, inputs[1])
        return grad_x, None, grad_strengths, None, None, None, None


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _kept(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(_address(tensor) for tensor in tensors)


def _laid_out(
    bank: PooledBank, x: Tensor, units: Tensor, strengths: Tensor, up_bias: Tensor | None, down_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Rows without gaps, routes int64, strengths float, biases of the weights' type."""
    up, down = (None if bias is None else bias.to(bank.dtype).contiguous() for bias in (up_bias, down_bias))
    return x.contiguous(), units.long().contiguous(), strengths.float().contiguous(), up, down


def _words(bank: PooledBank, inputs: tuple[Tensor | None, ...], out: Tensor | None) -> tuple[int, ...]:
    x, units, strengths, up_bias, down_bias = inputs
    assert x is not None
    assert units is not None
    bf16 = torch.bfloat16
    return (
        *(*units.shape, bank.num_units, bank.width, bank.unit_width, bank.activation.code, torch.get_num_threads()),
        *(x.dtype is bf16, bank.format.code, out is not None and out.dtype is bf16),
        *(x.data_ptr(), 0, 0, _address(up_bias), _address(down_bias), units.data_ptr(), _address(strengths)),
        *(_address(out), bank.pool.address or 0, bank.layer),
    )


def _check(code: int, bank: PooledBank, units: Tensor) -> None:
    if code == 1:
        raise ValueError(f"units reach {units.min()} to {units.max()}, expected -1 (nobody) to {bank.num_units - 1}")
    if code == 3:
        raise OSError(bank.pool.failure())
    if code:
        raise MemoryError("the compiled bank found no memory for its scratch; wake fewer tokens at once")
