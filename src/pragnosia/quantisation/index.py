"""The packed form on disk, and its index.

    OUT/config.json       ours; `quantization_config` names the format
    OUT/units.bin         record after record, layer by layer, unit by unit: up rows, then down rows, from a page on
    OUT/resident.bin      everything else, tensor after tensor, each from a cache line on
    OUT/packed.json       this index: where everything lies, in which format, and what each piece sums up to

A record is read in pieces of 1 MiB, and each piece has a checksum (CRC-32 as in zlib), so that damage is seen before it
speaks.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pragnosia.checkpoints.admission import read_json
from pragnosia.errors import CheckpointError

if TYPE_CHECKING:
    from pragnosia.kernels.formats import Format

INDEX, UNITS, RESIDENT = "packed.json", "units.bin", "resident.bin"
METHOD, VERSION = "pragnosia", 2
PIECE, PAGE, LINE = 1 << 20, 4096, 64  # bytes: what has one checksum; where records begin; where tensors begin


@dataclass(frozen=True)
class Packed:
    """One resident tensor: `num_bytes` of resident.bin from `offset`; the shape is the matrix's, not its rows'."""

    offset: int
    num_bytes: int
    shape: tuple[int, ...]
    format: str
    """A row format, or the torch type of plain numbers."""
    sums: tuple[int, ...] = ()
    """Checksums of its pieces."""


@dataclass(frozen=True)
class PackedIndex:
    """What packed.json says."""

    format: str
    record_bytes: int
    units_per_layer: int
    sparse_layers: int
    sums: list[list[int]]
    """Of each record, the checksums of its pieces."""
    tensors: dict[str, Packed]

    @property
    def entry(self) -> Format:
        """The units' format."""
        from pragnosia.kernels.formats import FORMATS  # torch, which a glance at a directory need not load

        return FORMATS[self.format]

    @property
    def stride(self) -> int:
        """From one record to the next."""
        return stride_of(self.record_bytes)

    def to_json(self) -> dict[str, Any]:
        """For packed.json."""
        return {"version": VERSION, **asdict(self)}


def stride_of(record_bytes: int) -> int:
    """From one record to the next."""
    return -(-record_bytes // PAGE) * PAGE


def checksums(data: Any) -> tuple[int, ...]:
    """CRC-32 of each MiB of some bytes."""
    view = memoryview(data).cast("B")
    return tuple(zlib.crc32(view[at : at + PIECE]) for at in range(0, len(view), PIECE))


def is_packed(folder: Path) -> bool:
    """Whether a directory holds a packed model."""
    return (folder / INDEX).is_file()


def _packed(shape: list[int], sums: list[int], **rest: Any) -> Packed:
    return Packed(shape=tuple(shape), sums=tuple(sums), **rest)


def read_index(folder: Path) -> PackedIndex:
    """The index of a packed model. Raises CheckpointError for one that is cut, foreign or does not fit its files."""
    from pragnosia.kernels.formats import FORMATS

    path = folder / INDEX
    values = read_json(path)
    try:
        version = values.pop("version")
        if version != VERSION:
            raise CheckpointError(f"{path} is of version {version}, expected {VERSION}; pack the model again")
        tensors = {name: _packed(**entry) for name, entry in values.pop("tensors").items()}
        index = PackedIndex(**values, tensors=tensors)
        needed = {
            UNITS: index.stride * (index.units_per_layer * index.sparse_layers - 1) + index.record_bytes,
            RESIDENT: max((entry.offset + entry.num_bytes for entry in tensors.values()), default=0),
        }
        known = index.format in FORMATS
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no index of a packed model ({error}); pack the model again") from error
    if not known:
        raise CheckpointError(f"{path} names the format {index.format!r}; we read {', '.join(FORMATS)}")
    for name, size in needed.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size < size:
            have = file.stat().st_size if file.is_file() else 0
            raise CheckpointError(f"{file} holds {have} bytes, its index calls for {size}; copy or pack it again")
    return index
