"""What a plan wants to know of a model: shapes and bytes, whether or not it lies anywhere yet.

Sizes       the question
Shelf       a directory's answer, and where its tensors are taken from (inference/shelf.py)
Described   the answer of a model that is only described: a preset, or a directory as if it were packed
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import final

import torch

from pragnosia.checkpoints.blueprint import is_unit
from pragnosia.checkpoints.matching import parameter_shapes
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.kernels.formats import FORMATS, Format
from pragnosia.kernels.pool import record_bytes
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.presets import preset
from pragnosia.quantisation.sizes import packed_sizes, packing_format, sparse_banks

ROWS = "model.hippocampus.rows"
"""Of long-term memory."""
PIECE = re.compile(r"model\.layers\.(\d+)\.(mixer|feed_forward)\..*")


class Sizes(ABC):
    """Of a model in one form."""

    config: PragnosiaConfig

    @property
    @abstractmethod
    def name(self) -> str:
        """A folder, or what people call it."""

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, Sequence[int]]:
        """Of every tensor, by our name; those of units may be missing."""

    @abstractmethod
    def num_bytes(self, name: str) -> int:
        """Of a tensor, in the form it has here."""

    @abstractmethod
    def plain_type(self, name: str) -> torch.dtype:
        """Of a tensor's numbers before they were packed."""

    @property
    @abstractmethod
    def format(self) -> Format:
        """Of the units."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What the model computes in."""

    @property
    @abstractmethod
    def leaves_table(self) -> bool:
        """Whether the token table stays on disk; it does not where the output head needs it too."""

    @property
    @abstractmethod
    def leaves_rows(self) -> bool:
        """Whether rows of long-term memory can stay on disk."""

    @property
    @abstractmethod
    def on_disk(self) -> int:
        """Bytes of all weights on disk."""

    @property
    def resident(self) -> dict[str, int]:
        """Bytes of every tensor that is no unit's, by our name."""
        shapes = self.shapes.items()
        return {name: self.num_bytes(name) for name, shape in shapes if not self.comes_and_goes(name, shape)}

    @property
    def record(self) -> int:
        """Bytes of what comes and goes: a unit, or the largest layer."""
        organ = self.config.units
        if not self.is_dense and organ is not None:
            return record_bytes(self.format, self.config.hidden_size, organ.unit_width, ACTIVATIONS[organ.activation])
        layers = [0] * self.config.num_hidden_layers
        for name, shape in self.shapes.items():
            match = PIECE.fullmatch(name)
            if match is not None and self.comes_and_goes(name, shape):
                layers[int(match[1])] += self.num_bytes(name)
        return max(layers)

    @property
    def record_read(self) -> int:
        """Bytes on disk of one record; fewer where its numbers are made plain on their way."""
        return self.record

    @property
    def sparse(self) -> list[str]:
        """The banks' names, in order."""
        return sparse_banks(self.config)

    @property
    def is_dense(self) -> bool:
        """Whether every weight wakes for every token, so that whole layers come and go."""
        return not self.sparse

    def comes_and_goes(self, name: str, shape: Sequence[int]) -> bool:
        """Whether a tensor is no resident: part of a unit or, in a dense model, a matrix of a layer."""
        if not self.is_dense:
            return is_unit(name)
        return len(shape) > 1 and PIECE.fullmatch(name) is not None


@final
class Described(Sizes):
    """A packed model that nobody has packed yet."""

    def __init__(self, name: str, config: PragnosiaConfig, types: Mapping[str, torch.dtype], entry: Format) -> None:
        """`types` are those of the numbers to be packed, one for each of the model's tensors."""
        self._name, self.config, self._format, self._types = name, config, entry, types
        self._shapes = parameter_shapes(config)
        self._packed = packed_sizes(config, self._shapes, types, entry)

    @property
    def name(self) -> str:
        return self._name

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        return {name: shape for name, shape in self._shapes.items() if not is_unit(name)}

    def num_bytes(self, name: str) -> int:
        return self._packed.residents[name]

    def plain_type(self, name: str) -> torch.dtype:
        return self._types[name]

    @property
    def format(self) -> Format:
        return self._format

    @property
    def dtype(self) -> torch.dtype:
        return self._types["model.norm.weight"]

    @property
    def leaves_table(self) -> bool:
        return not self.config.tie_word_embeddings

    @property
    def leaves_rows(self) -> bool:
        return ROWS in self._shapes

    @property
    def on_disk(self) -> int:
        return self._packed.total


def described_preset(name: str, format_name: str) -> Described:
    """A preset in bfloat16, as if it had been packed. Raises ConfigError or CheckpointError for an unknown name."""
    config = preset(name)
    return Described(name, config, dict.fromkeys(parameter_shapes(config), torch.bfloat16), packing_format(format_name))


def as_if_packed(sizes: Sizes, format_name: str) -> Described:
    """The same model in another format. Raises CheckpointError for a format that is none."""
    if isinstance(sizes, Described) and sizes.format is FORMATS.get(format_name):
        return sizes
    types = {name: sizes.plain_type(name) for name in parameter_shapes(sizes.config)}
    return Described(sizes.name, sizes.config, types, packing_format(format_name))
