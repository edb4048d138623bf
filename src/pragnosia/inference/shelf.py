"""A shelf: where a model's tensors are taken from, one by one, whatever form they lie in.

AsItLies    a directory of ours or of a supported family, or a GGUF file: units are extents of its files
AsPacked    the packed form: rows of a format, units as records with checksums
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from pragnosia.checkpoints.blueprint import Blueprint, blueprint
from pragnosia.checkpoints.gguf_source import GgufSource
from pragnosia.checkpoints.places import Extents, Place, read_place
from pragnosia.errors import CheckpointError
from pragnosia.inference.directory import read_values
from pragnosia.inference.far_table import FarPlace
from pragnosia.inference.sizes import PIECE, ROWS, Sizes
from pragnosia.inference.table import TableOnDisk
from pragnosia.kernels.blocks import Extent
from pragnosia.kernels.formats import FORMATS, Format, plain_format
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.quantisation.index import RESIDENT, UNITS, checksums, is_packed, read_index
from pragnosia.quantisation.layers import PackedEmbedding, PackedLinear, PackedTable

EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Stored:
    """One tensor of a layer that is read as a whole: where it lies, and what it is."""

    name: str
    extents: Extents
    num_bytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    format: Format | None = None
    """Of packed rows; None for plain numbers of `dtype`."""
    sums: tuple[int, ...] = ()
    """Of its pieces, where they are known."""
    by_input: bool = False
    """Whether a matrix of plain numbers comes to lie input by input (kernels/awake.py)."""


class Shelf(Sizes):
    """What the stream, too, wants to know of a model on disk."""

    folder: Path

    @property
    @abstractmethod
    def table(self) -> TableOnDisk | None:
        """The token table, to be left on disk; None where the output head needs it too."""

    @property
    @abstractmethod
    def rows(self) -> FarPlace | None:
        """Where the rows of long-term memory lie, to be left there; None where they cannot be read one by one."""

    @property
    def leaves_rows(self) -> bool:
        return self.rows is not None

    @abstractmethod
    def unit(self, bank: str, layer: int, unit: int) -> tuple[Extents, list[int]]:
        """Where a unit of the `layer`th sparse layer lies, and the checksums of its pieces."""

    @abstractmethod
    def put(self, model: nn.Module, name: str) -> None:
        """Read a resident tensor into its place in the model."""

    @abstractmethod
    def stored(self, name: str) -> Stored:
        """Where a tensor of a layer lies."""

    def layers(self) -> list[list[Stored]]:
        """Of a dense model: what is read for each layer, the strictest alignment first."""
        found: list[list[Stored]] = [[] for _ in range(self.config.num_hidden_layers)]
        for name, shape in self.shapes.items():
            match = PIECE.fullmatch(name)
            if match is not None and self.comes_and_goes(name, shape):
                found[int(match[1])].append(self.stored(name))
        for layer in found:
            layer.sort(key=lambda part: (part.format is None, -part.dtype.itemsize))
        return found


def open_shelf(folder: str | Path) -> Shelf:
    """Of a model whose units or layers can be read alone. Raises CheckpointError or ConfigError; reads no weights."""
    shelf = shelf_of(folder)
    if shelf.is_dense:
        shelf.layers()
    else:
        shelf.unit(shelf.sparse[0], 0, 0)
    return shelf


def shelf_of(folder: str | Path) -> Shelf:
    """Of any model that can be read. Raises CheckpointError or ConfigError; reads no weights."""
    return AsPacked(Path(folder)) if is_packed(Path(folder)) else AsItLies(blueprint(folder))


@final
class AsItLies(Shelf):
    """Plain numbers in safetensors files; those of a GGUF file become plain as they are read."""

    def __init__(self, print_: Blueprint) -> None:
        self.print_, self.folder, self.config = print_, print_.folder, print_.config

    @property
    def name(self) -> str:
        return str(self.folder)

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        return self.print_.shapes

    def num_bytes(self, name: str) -> int:
        return self.print_.num_bytes(name)

    def plain_type(self, name: str) -> torch.dtype:
        return self.print_.dtype(name)

    @property
    def on_disk(self) -> int:
        if isinstance(self.print_.source, GgufSource):
            return self.folder.stat().st_size
        return sum(self.print_.num_bytes(name) for name in self.shapes)

    @property
    def kinds(self) -> list[str]:
        """The types of a GGUF file's numbers, which become `format` as they are read; none of other files."""
        return self.print_.source.kinds if isinstance(self.print_.source, GgufSource) else []

    @property
    def record_read(self) -> int:
        if not isinstance(self.print_.source, GgufSource):
            return self.record
        if self.is_dense:
            records = [[extent for part in layer for extent in part.extents] for layer in self.layers()]
        else:
            records = [self.unit(bank, number, 0)[0] for number, bank in enumerate(self.sparse)]
        return sum(extent.num_bytes for record in records for extent in record) // len(records)

    def stored(self, name: str) -> Stored:
        print_, shape = self.print_, tuple(self.print_.shapes[name])
        return Stored(name, print_.extents(name), print_.num_bytes(name), shape, print_.dtype(name))

    @property
    def leaves_table(self) -> bool:
        return self._table_place() is not None

    def _table_place(self) -> Place | None:
        place = self.print_.place(EMBEDDING)
        if self.config.tie_word_embeddings or place is None or place.dtype not in (torch.float32, torch.bfloat16):
            return None
        return place

    @property
    def table(self) -> TableOnDisk | None:
        place = self._table_place()
        if place is None:
            return None
        rows, width = place.shape
        return TableOnDisk(place.file, place.offset, (rows, width), plain_format(place.dtype), self.dtype)

    @property
    def rows(self) -> FarPlace | None:
        place = self.print_.place(ROWS) if ROWS in self.shapes else None
        if place is None or place.dtype not in (torch.float32, torch.bfloat16):
            return None
        rows, width = place.shape
        return FarPlace(place.file, place.offset, rows, width, plain_format(place.dtype))

    @property
    def format(self) -> Format:
        return plain_format(self.dtype if self.is_dense else self.print_.dtype(f"{self.sparse[0]}.up"))

    @property
    def dtype(self) -> torch.dtype:
        return self.print_.dtype(EMBEDDING)

    def unit(self, bank: str, layer: int, unit: int) -> tuple[Extents, list[int]]:
        return [*self.print_.unit(f"{bank}.up", unit), *self.print_.unit(f"{bank}.down", unit)], []

    def put(self, model: nn.Module, name: str) -> None:
        put_tensor(model, name, self.print_.read(name))


@final
class AsPacked(Shelf):
    """Rows of a format in two files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index = folder, read_index(folder)
        self.config = PragnosiaConfig.from_dict(read_values(folder))
        organ, packed = self.config.units, (self.index.units_per_layer, self.index.sparse_layers)
        if (organ.num_units if organ and self.sparse else 0, len(self.sparse)) != packed:
            raise CheckpointError(f"{folder}: config.json and packed.json describe different models; pack it again")
        if self.sparse and self.record != self.index.record_bytes:
            raise CheckpointError(
                f"{folder} has units of {self.index.record_bytes} bytes, they take {self.record} now (narrow ones lie "
                "another way since); pack it again"
            )

    @property
    def name(self) -> str:
        return str(self.folder)

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        return {name: known.shape for name, known in self.index.tensors.items()}

    def num_bytes(self, name: str) -> int:
        return self.index.tensors[name].num_bytes

    def plain_type(self, name: str) -> torch.dtype:
        known = self.index.tensors.get(name)
        kind: torch.dtype = self.dtype if known is None or known.format in FORMATS else getattr(torch, known.format)
        return kind

    @property
    def on_disk(self) -> int:
        ends = (known.offset + known.num_bytes for known in self.index.tensors.values())
        return self.index.stride * self.index.units_per_layer * self.index.sparse_layers + max(ends, default=0)

    @property
    def leaves_table(self) -> bool:
        return not self.config.tie_word_embeddings

    def stored(self, name: str) -> Stored:
        known = self.index.tensors[name]
        extents, entry = [Extent(self.folder / RESIDENT, known.offset, known.num_bytes)], FORMATS.get(known.format)
        dtype = torch.uint8 if entry is not None else getattr(torch, known.format)
        return Stored(name, extents, known.num_bytes, known.shape, dtype, entry, known.sums)

    @property
    def table(self) -> TableOnDisk | None:
        known = self.index.tensors[EMBEDDING]
        if not self.leaves_table:
            return None
        entry = FORMATS.get(known.format) or plain_format(getattr(torch, known.format))
        rows, width = known.shape
        return TableOnDisk(self.folder / RESIDENT, known.offset, (rows, width), entry, self.dtype, known.sums)

    @property
    def rows(self) -> FarPlace | None:
        known = self.index.tensors.get(ROWS)
        if known is None:
            return None
        entry = FORMATS.get(known.format) or plain_format(getattr(torch, known.format))
        rows, width = known.shape
        return FarPlace(self.folder / RESIDENT, known.offset, rows, width, entry)

    @property
    def format(self) -> Format:
        return self.index.entry

    @property
    def dtype(self) -> torch.dtype:
        kind: torch.dtype = getattr(torch, self.index.tensors["model.norm.weight"].format)
        return kind

    def unit(self, bank: str, layer: int, unit: int) -> tuple[Extents, list[int]]:
        number, index = layer * self.index.units_per_layer + unit, self.index
        return [Extent(self.folder / UNITS, number * index.stride, index.record_bytes)], index.sums[number]

    def put(self, model: nn.Module, name: str) -> None:
        known = self.index.tensors[name]
        if known.format not in FORMATS:
            dtype: torch.dtype = getattr(torch, known.format)
            put_tensor(model, name, self._read(name, dtype).view(known.shape))
            return
        entry, depth = FORMATS[known.format], known.shape[-1]
        rows = self._read(name, torch.uint8).view(known.shape[0], -1)
        put_rows(model, name, rows, entry, depth, self.dtype, self._bias(f"{name.rpartition('.')[0]}.bias"))

    def _bias(self, name: str) -> Tensor | None:
        known = self.index.tensors.get(name)
        return None if known is None else self._read(name, getattr(torch, known.format))

    def _read(self, name: str, dtype: torch.dtype) -> Tensor:
        known = self.index.tensors[name]
        flat, file = torch.empty(known.num_bytes // dtype.itemsize, dtype=dtype), self.folder / RESIDENT
        read_place(Place(file, known.offset, known.num_bytes, known.shape, dtype), flat)
        if known.sums and known.sums != checksums(flat.view(torch.uint8).numpy()):
            raise CheckpointError(f"{file} is damaged ({name} has a wrong checksum); copy or pack it again")
        return flat


def put_rows(
    model: nn.Module, name: str, rows: Tensor, entry: Format, depth: int, dtype: torch.dtype, bias: Tensor | None
) -> None:
    """Packed rows in the place of a linear layer, a table, or the token table (and an output head that shares it)."""
    owner = name.rpartition(".")[0]
    if name == ROWS:
        model.set_submodule(owner, PackedTable(rows, entry, depth))
        return
    if name != EMBEDDING:
        model.set_submodule(owner, PackedLinear(rows, entry, depth, bias))
        return
    model.set_submodule(owner, PackedEmbedding(rows, entry, depth, dtype))
    config: Any = model.config
    if config.tie_word_embeddings:
        model.set_submodule("lm_head", PackedLinear(rows, entry, depth))


def put_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """A parameter or buffer, in the place of its shadow."""
    owner, _, attribute = name.rpartition(".")
    module: Any = model.get_submodule(owner)
    if isinstance(module, PackedLinear):
        return  # it took its bias along
    if attribute in module._parameters:
        module.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
    else:
        module.register_buffer(attribute, tensor)
