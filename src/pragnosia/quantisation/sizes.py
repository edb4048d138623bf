"""What a packed model takes on disk, told by shapes alone: whoever packs and whoever only plans ask the same question.

units.bin       strides: each record from a page on
resident.bin    everything else, each tensor from a cache line on
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pragnosia.checkpoints.blueprint import is_unit
from pragnosia.errors import CheckpointError, unknown_name
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.kernels.formats import FORMATS, Format
from pragnosia.kernels.pool import record_bytes
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.quantisation.index import LINE, stride_of

ENDS = ("model.embed_tokens.weight", "lm_head.weight")
_RECALL = (".keys", "hippocampus.rows")
SMALLER = ("bf16", "int8", "int4", "int3", "int2")
"""Formats to pack into, each smaller than the one before; nf4 is of int4's size."""


@dataclass(frozen=True)
class PackedSizes:
    """Bytes of the two packed files, and of what lies in them."""

    record: int
    """Of one unit; 0 where there is none."""
    num_units: int
    """In each sparse layer."""
    sparse_layers: int
    residents: dict[str, int]
    """Every tensor that is no unit's, in the order of the file."""

    @property
    def units_bytes(self) -> int:
        """Of units.bin."""
        return stride_of(self.record) * self.num_units * self.sparse_layers

    @property
    def padding(self) -> int:
        """Of units.bin, what lies between records."""
        return (stride_of(self.record) - self.record) * self.num_units * self.sparse_layers

    @property
    def resident_bytes(self) -> int:
        """Of resident.bin."""
        end = 0
        for size in self.residents.values():
            end = -(-end // LINE) * LINE + size
        return end

    @property
    def total(self) -> int:
        """Of both."""
        return self.units_bytes + self.resident_bytes


def packed_sizes(
    config: PragnosiaConfig, shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, torch.dtype], entry: Format
) -> PackedSizes:
    """Of a model whose tensors have these shapes and, before they are packed, these types."""
    organ, banks = config.units, sparse_banks(config)
    record = num_units = 0
    if organ is not None and banks:
        num_units = organ.num_units
        record = record_bytes(entry, config.hidden_size, organ.unit_width, ACTIVATIONS[organ.activation])
    residents = {
        name: resident_bytes(name, shape, dtypes[name], entry) for name, shape in shapes.items() if not is_unit(name)
    }
    return PackedSizes(record, num_units, len(banks), residents)


def resident_bytes(name: str, shape: Sequence[int], dtype: torch.dtype, entry: Format) -> int:
    """Of one tensor that is no unit's."""
    chosen = resident_format(name, shape, dtype, entry)
    return math.prod(shape) * dtype.itemsize if chosen is None else shape[0] * chosen.row_bytes(shape[1])


def resident_format(name: str, shape: Sequence[int], dtype: torch.dtype, entry: Format) -> Format | None:
    """Of what is no unit, in a model whose units are in `entry`; None: as it is.

    A rounded router wakes the wrong unit, a rounded key recalls the wrong row; a model's ends bear less rounding than
    its middle, and no pruning.
    """
    if (
        len(shape) != 2
        or ".thalamus." in name
        or ".salience." in name
        or name.endswith(_RECALL)
        or "bias" in name.rsplit(".", 1)[-1]
        or entry.plain_dtype is not None
        or not dtype.is_floating_point
    ):
        return None
    if name not in ENDS:
        return entry
    return None if entry.name == "bf16-2:4" else FORMATS["int8"]


def sparse_banks(config: PragnosiaConfig) -> list[str]:
    """The banks' names, in order."""
    return [f"model.layers.{layer}.feed_forward.bank" for layer in config.sparse_layers]


def packing_format(name: str) -> Format:
    """The format of this name, if one can pack into it. Raises CheckpointError."""
    able = [other for other in FORMATS if other != "fp32"]
    if name == "fp32":
        raise CheckpointError(f"--format fp32 would pack nothing; choose from {', '.join(able)}")
    if name not in able:
        raise CheckpointError(f"--format: {unknown_name('format', name, able)}")
    return FORMATS[name]
