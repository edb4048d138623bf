"""A shelf: where a model's tensors are taken from, one by one, whatever form they lie in.

AsItLies    a directory of ours or of a supported family: plain numbers, units as extents of safetensors files
AsPacked    the packed form: rows of a format, units as records with checksums
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from pragnosia.checkpoints.blueprint import Blueprint, blueprint
from pragnosia.checkpoints.places import Extents, Place, read_place
from pragnosia.errors import CheckpointError
from pragnosia.inference.directory import read_values
from pragnosia.inference.table import TableOnDisk
from pragnosia.kernels.formats import FORMATS, Format, plain_format
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.quantisation.index import RESIDENT, UNITS, is_packed, read_index
from pragnosia.quantisation.layers import PackedEmbedding, PackedLinear

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


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
        return {name: self.print_.num_bytes(name) for name in self.print_.shapes if not is_streamed(name)}

    @property
    def table(self) -> TableOnDisk | None:
        place = self.print_.place(EMBEDDING)
        if self.config.tie_word_embeddings or place is None or place.dtype not in (torch.float32, torch.bfloat16):
            return None
        rows, width = place.shape
        return TableOnDisk(place.file, place.offset, (rows, width), plain_format(place.dtype), self.dtype)

    @property
    def format(self) -> Format:
        return plain_format(self.print_.dtype(f"{self.sparse[0]}.up"))

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
        if organ is None or (organ.num_units, len(self.sparse)) != packed:
            raise CheckpointError(f"{folder}: config.json and packed.json describe different models; pack it again")

    @property
    def resident(self) -> dict[str, int]:
        return {name: entry.num_bytes for name, entry in self.index.tensors.items()}

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
        flat = torch.empty(known.num_bytes // dtype.itemsize, dtype=dtype)
        read_place(Place(self.folder / RESIDENT, known.offset, known.num_bytes, known.shape, dtype), flat)
        return flat


def is_streamed(name: str) -> bool:
    """Whether a tensor of ours is made of units that are fetched when they wake."""
    return name.endswith((".bank.up", ".bank.down"))


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
