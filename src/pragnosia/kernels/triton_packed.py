"""Packed rows on a GPU: products that read them packed, a bank's units in their slots and a linear layer's.

    units   P = act(X up' + b),  out[o] = s (P down' + b)      two launches for all units that are there
    linear  y = X W' + b                                       one

Weights become numbers in registers, tile by tile; no matrix is ever there unpacked. Up to FEW rows of a unit are
multiplied and summed in single precision, so that nothing is rounded before the sum; of more, tiles are rounded to x's
type and go to the tensor cores, as `unpack` and a product would have it. It was proven in Triton's interpreter, and has
not run on a GPU yet.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pragnosia.kernels import triton
from pragnosia.kernels.formats import NF4, Format

if TYPE_CHECKING:
    from torch import Tensor

    from pragnosia.kernels.activations import Activation

FEW = 4  # rows of a unit that are summed one by one; more fill tiles of at least 16
TILES = (1, 2, FEW, 16, 32, 64)  # rows of a tile
COLUMNS = 64  # outputs of a program
FEW_COLUMNS = 32  # and for few rows, so that many programs read at once; fewer where rows share the registers


def supports(x: Tensor, entry: Format) -> bool:
    """Whether rows in this format are multiplied here by these inputs."""
    return (
        bool(entry.group) and not entry.pruned and triton.supports(x) and not torch.is_autocast_enabled(x.device.type)
    )


@dataclass(frozen=True, kw_only=True)
class PackedUnits:
    """How the units of a bank lie: each a record with its up rows, then its down rows; and what they do."""

    entry: Format
    width: int
    unit_width: int
    activation: Activation

    @property
    def num_rows(self) -> int:
        """Of up: neurons, times two where each has a gate."""
        return self.activation.num_parts * self.unit_width

    @property
    def up_bytes(self) -> int:
        """Where a record's down rows begin."""
        return self.num_rows * self.entry.row_bytes(self.width)

    def can(self, x: Tensor) -> bool:
        """Whether `units` takes them."""
        return self.activation.num_speaking is None and supports(x, self.entry)


@dataclass(frozen=True, kw_only=True)
class _Tiles:
    """Tiles of rows that share a matrix, on the device."""

    unit: Tensor  # (tiles,) for biases
    at: Tensor  # (tiles,) the byte where its matrix begins
    start: Tensor  # (tiles,) its first row
    stop: Tensor  # (tiles,) where its unit's rows end
    rows: int  # of a tile

    def all(self, offset: int = 0) -> tuple[Tensor, ...]:
        """In the order of the programs' parameters; matrices begin `offset` bytes later."""
        return self.unit, self.at + offset if offset else self.at, self.start, self.stop

    @property
    def few(self) -> bool:
        """Whether rows are summed one by one."""
        return self.rows <= FEW


def tile_rows(most: int) -> int:
    """Rows of a tile, where a unit has at most so many."""
    return next((rows for rows in TILES if rows >= most), TILES[-1])


def _tiles(spans: Sequence[tuple[int, int, int, int]], rows: int, device: torch.device) -> _Tiles:
    """Of (unit, byte, start, stop) for each matrix."""
    cut = [(unit, at, first, stop) for unit, at, start, stop in spans for first in range(start, stop, rows)]
    table = torch.tensor(cut, dtype=torch.int64, device=device).t().contiguous()
    return _Tiles(unit=table[0], at=table[1], start=table[2], stop=table[3], rows=rows)


@functools.cache
def _table(device: torch.device) -> Tensor:
    """What nf4's codes mean."""
    return torch.tensor(NF4, dtype=torch.float32, device=device)


def _how(entry: Format, tiles: _Tiles, columns: int, dtype: torch.dtype) -> dict[str, Any]:
    kind = 1 if entry.has_zero_point else 2 if entry.name == "nf4" else 0
    across = max(16, FEW_COLUMNS // tiles.rows) if tiles.few else COLUMNS
    return {
        "kind": kind,
        "bits": entry.bits,
        "few": tiles.few,
        "precision": triton._precision(dtype),
        "BM": tiles.rows,
        "BN": min(across, max(16, 1 << (columns - 1).bit_length())),
        "num_warps": 4,
    }


def units(
    x: Tensor,
    tokens: Tensor,
    order: Tensor,
    spans: Sequence[tuple[int, int, int, int]],
    records: Tensor,
    of: PackedUnits,
    scale: Tensor,
    biases: Mapping[str, Tensor | None],
    out: Tensor,
    most: int,
) -> None:
    """out[order[n]] = scale[order[n]] unit(x[tokens[n]]) for the rows n of every span (unit, byte, start, stop).

    `records` are bytes on the device, in which a unit's record begins at its span's byte, a multiple of 2; `biases`
    are `up` (U, R) and `down` (U, D) or None; `most` is the greatest number of rows that any unit of the bank has, so
    that how rows are tiled does not depend on who is here.
    """
    from pragnosia.kernels import triton_packed_programs as programs

    flat = records.view(-1)
    codes, heads, table = flat, flat.view(torch.int16), _table(x.device)
    x, tiles = x.contiguous(), _tiles(spans, tile_rows(most), x.device)
    active, up_bias, down_bias = x.new_empty(len(tokens), of.unit_width), biases["up"], biases["down"]
    how, count = _how(of.entry, tiles, of.unit_width, x.dtype), len(tiles.unit)
    programs.up_packed[count, -(-of.unit_width // how["BN"])](
        x, tokens, codes, heads, table, up_bias, active, *tiles.all(), of.width, of.unit_width,
        of.entry.row_bytes(of.width), code=of.activation.code, gated=of.activation.num_parts == 2,
        biased=up_bias is not None, **how,
    )  # fmt: skip
    down, depth = tiles.all(of.up_bytes), of.entry.down_shape(of.width, of.unit_width)[1]
    given = (active, order, codes, heads, table, down_bias, scale, out, *down, of.unit_width, of.width)
    row_bytes = of.entry.row_bytes(depth)
    if of.entry.is_turned(of.unit_width):
        how = _how(of.entry, tiles, of.unit_width, x.dtype)
        how["BK"] = min(32, how.pop("BN"))
        programs.turned_packed[count, -(-of.width // 128)](*given, row_bytes, biased=down_bias is not None, **how)
        return
    how = _how(of.entry, tiles, of.width, x.dtype)
    programs.rows_packed[count, -(-of.width // how["BN"])](
        *given, row_bytes, biased=down_bias is not None, scaled=True, scattered=True, **how
    )


def linear(x: Tensor, packed: Tensor, depth: int, entry: Format, bias: Tensor | None) -> Tensor:
    """y (..., outs) = x (..., K) W' + b; rows of 64 bytes' alignment, as `pack` makes them."""
    from pragnosia.kernels import triton_packed_programs as programs

    flat, rows = packed.contiguous().view(-1), x.reshape(-1, depth).contiguous()
    out = rows.new_empty(len(rows), len(packed))
    if len(rows):
        tiles = _tiles([(0, 0, 0, len(rows))], tile_rows(len(rows)), x.device)
        how = _how(entry, tiles, len(packed), x.dtype)
        programs.rows_packed[len(tiles.unit), -(-len(packed) // how["BN"])](
            rows, None, flat, flat.view(torch.int16), _table(x.device), bias, None, out, *tiles.all(), depth,
            len(packed), packed.shape[1], biased=bias is not None, scaled=False, scattered=False, **how,
        )  # fmt: skip
    return out.view(*x.shape[:-1], len(packed))
