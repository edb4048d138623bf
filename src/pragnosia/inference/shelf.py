"""A shelf: where a model's tensors are taken from, one by one, whatever form they lie in.

AsItLies    a directory of ours or of a supported family: plain numbers, units as extents of safetensors files
AsPacked    the packed form: rows of a format, units as records with checksums
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from pragnosia.checkpoints.blueprint import Blueprint, blueprint, is_unit
from pragnosia.checkpoints.places import Extents, Place, read_place
from pragnosia.errors import CheckpointError
from pragnosia.inference.directory import read_values
from pragnosia.inference.table import TableOnDisk
from pragnosia.kernels.formats import FORMATS, Format, plain_format
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.quantisation.index import RESIDENT, UNITS, checksums, is_packed, read_index
from pragnosia.quantisation.layers import PackedEmbedding, PackedLinear

EMBEDDING = "model.embed_tokens.weight"
_PIECE = re.compile(r"model\.layers\.(\d+)\.(mixer|feed_forward)\..*")


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


class Shelf(ABC):
    """What the stream and its plan want to know of a model on disk."""

    folder: Path
    config: PragnosiaConfig

    @property
    @abstractmethod
    def resident(self) -> dict[str, int]:
        """Bytes of every tensor that is no unit's, by our name."""

    @property
    @abstractmethod
    def table(self) -> TableOnDisk | None:
        """The token table, to be left on disk; None where the output head needs it too."""

    @property
    @abstractmethod
    def format(self) -> Format:
        """Of the units."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What the model computes in."""

    @abstractmethod
    def unit(self, bank: str, layer: int, unit: int) -> tuple[Extents, list[int]]:
        """Where a unit of the `layer`th sparse layer lies, and the checksums of its pieces."""

    @abstractmethod
    def put(self, model: nn.Module, name: str) -> None:
        """Read a resident tensor into its place in the model."""

    @abstractmethod
    def stored(self, name: str) -> Stored:
        """Where a tensor of a layer lies."""

    @property
    def is_dense(self) -> bool:
        """Whether every weight wakes for every token, so that whole layers come and go."""
        return not self.sparse

    def comes_and_goes(self, name: str, shape: Sequence[int]) -> bool:
        """Whether a tensor is no resident: part of a unit or, in a dense model, a matrix of a layer."""
        if not self.is_dense:
            return is_unit(name)
        return len(shape) > 1 and _PIECE.fullmatch(name) is not None

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, Sequence[int]]:
        """Of every tensor, by our name."""

    def layers(self) -> list[list[Stored]]:
        """Of a dense model: what is read for each layer, the strictest alignment first."""
        found: list[list[Stored]] = [[] for _ in range(self.config.num_hidden_layers)]
        for name, shape in self.shapes.items():
            match = _PIECE.fullmatch(name)
            if match is not None and self.comes_and_goes(name, shape):
                found[int(match[1])].append(self.stored(name))
        for layer in found:
            layer.sort(key=lambda part: (part.format is None, -part.dtype.itemsize))
        return found

    @property
    def sparse(self) -> list[str]:
        """The banks' names, in order."""
        kinds = enumerate(self.config.feed_forwards or ())
        return [f"model.layers.{layer}.feed_forward.bank" for layer, kind in kinds if kind == "experts"]


def open_shelf(folder: str | Path) -> Shelf:
    """Of a model whose units can be read alone. Raises CheckpointError or ConfigError; reads no weights."""
    if is_packed(Path(folder)):
        return AsPacked(Path(folder))
    shelf = AsItLies(blueprint(folder))
    if shelf.sparse:
        shelf.unit(shelf.sparse[0], 0, 0)
    return shelf


@final
class AsItLies(Shelf):
    """Plain numbers in safetensors files."""

    def __init__(self, print_: Blueprint) -> None:
        self.print_, self.folder, self.config = print_, print_.folder, print_.config

    @property
    def resident(self) -> dict[str, int]:
        return {n: self.print_.num_bytes(n) for n, shape in self.shapes.items() if not self.comes_and_goes(n, shape)}

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        return self.print_.shapes

    def stored(self, name: str) -> Stored:
        print_, shape = self.print_, tuple(self.print_.shapes[name])
        return Stored(name, print_.extents(name), print_.num_bytes(name), shape, print_.dtype(name))

    @property
    def table(self) -> TableOnDisk | None:
        place = self.print_.place(EMBEDDING)
        if self.config.tie_word_embeddings or place is None or place.dtype not in (torch.float32, torch.bfloat16):
            return None
        rows, width = place.shape
        return TableOnDisk(place.file, place.offset, (rows, width), plain_format(place.dtype), self.dtype)

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
        organ, packed = self.config.experts, (self.index.units_per_layer, self.index.sparse_layers)
        if (organ.num_units if organ and self.sparse else 0, len(self.sparse)) != packed:
            raise CheckpointError(f"{folder}: config.json and packed.json describe different models; pack it again")

    @property
    def resident(self) -> dict[str, int]:
        tensors = self.index.tensors.items()
        return {name: known.num_bytes for name, known in tensors if not self.comes_and_goes(name, known.shape)}

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        return {name: known.shape for name, known in self.index.tensors.items()}

    def stored(self, name: str) -> Stored:
        known = self.index.tensors[name]
        extents, entry = [(self.folder / RESIDENT, known.offset, known.num_bytes)], FORMATS.get(known.format)
        dtype = torch.uint8 if entry is not None else getattr(torch, known.format)
        return Stored(name, extents, known.num_bytes, known.shape, dtype, entry, known.sums)

    @property
    def table(self) -> TableOnDisk | None:
        known = self.index.tensors[EMBEDDING]
        if self.config.tie_word_embeddings:
            return None
        entry = FORMATS.get(known.format) or plain_format(getattr(torch, known.format))
        rows, width = known.shape
        return TableOnDisk(self.folder / RESIDENT, known.offset, (rows, width), entry, self.dtype)

    @property
    def format(self) -> Format:
        return self.index.entry

    @property
    def dtype(self) -> torch.dtype:
        kind: torch.dtype = getattr(torch, self.index.tensors["model.norm.weight"].format)
        return kind

    def unit(self, bank: str, layer: int, unit: int) -> tuple[Extents, list[int]]:
        number, index = layer * self.index.units_per_layer + unit, self.index
        return [(self.folder / UNITS, number * index.stride, index.record_bytes)], index.sums[number]

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
    """Packed rows in the place of a linear layer or of the token table (and of an output head that shares it)."""
    owner = name.rpartition(".")[0]
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
