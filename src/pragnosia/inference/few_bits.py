"""A model packed as it is loaded: matrices in few bits in memory, and nothing on disk.

Tensor by tensor and unit by unit, so that memory peaks a layer above what the packed model takes. The rows, and so the
logits, are those of the same model from `pragnosia pack`, bit for bit. Units go into the slots of a pool that has one
for each of them (kernels/pool.py): they came from memory, and stay.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pragnosia.checkpoints.blueprint import Blueprint, blueprint, is_unit
from pragnosia.errors import CheckpointError, UserError
from pragnosia.inference.shelf import put_rows, put_tensor
from pragnosia.inference.stream import Progress, built, put_bank
from pragnosia.kernels import native_library
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.kernels.formats import FORMATS, Format
from pragnosia.kernels.pool import UnitPool, record_bytes
from pragnosia.model.cortex import Cortex
from pragnosia.quantisation.index import is_packed
from pragnosia.quantisation.packing import packed_rows, record_of, units_of
from pragnosia.quantisation.sizes import resident_format, sparse_banks


def load_in_few_bits(
    folder: str | Path, name: str, dtype: torch.dtype | None = None, *, progress: Progress | None = None
) -> Cortex:
    """A model in the row format `name`, computing in `dtype` or what it is stored in.

    Raises CheckpointError or ConfigError for what cannot be read or packed, UserError without the compiled kernels.
    """
    if is_packed(Path(folder)):
        raise CheckpointError(f"{folder} is packed already; load it without load_in_4bit and load_in_8bit")
    print_, entry = blueprint(folder), FORMATS[name]
    if print_.config.units is not None and native_library() is None:
        raise UserError("packed units need the compiled kernels; install a C++ compiler (see pragnosia doctor)")
    dtype = dtype or print_.dtype("model.norm.weight")
    sizes = {tensor: print_.num_bytes(tensor) for tensor in print_.shapes}
    resident = {tensor: size for tensor, size in sizes.items() if not is_unit(tensor)}
    told, total = 0, sum(sizes.values())

    def tell(done: int) -> None:
        nonlocal told
        told = done
        if progress is not None:
            progress(done, total)

    def put(model: Cortex, tensor: str) -> None:
        _put(model, tensor, print_, entry, dtype)

    model = built(print_.config, put, resident, lambda done, _: tell(done))
    organ, banks = print_.config.units, sparse_banks(print_.config)
    if organ is None:
        return model
    record = record_bytes(entry, print_.config.hidden_size, organ.unit_width, ACTIVATIONS[organ.activation])
    pool = UnitPool(len(banks), organ.num_units, record, len(banks) * organ.num_units)
    for number, bank in enumerate(banks):
        ups, downs = units_of(print_, f"{bank}.up"), units_of(print_, f"{bank}.down")
        for unit, (up, down) in enumerate(zip(ups, downs, strict=True)):
            pool.keep(number, unit, record_of(print_, up, down, entry))
            tell(told + up.nbytes + down.nbytes)
        put_bank(model, bank, number, pool, entry)
    return model


def _put(model: Cortex, name: str, print_: Blueprint, entry: Format, dtype: torch.dtype) -> None:
    """One tensor that is no unit's, packed or as it is."""
    tensor = print_.read(name)
    chosen = resident_format(name, tensor.shape, tensor.dtype, entry)
    if chosen is None:
        put_tensor(model, name, _as(tensor, dtype))
        return
    bias = f"{name.rpartition('.')[0]}.bias"
    held = _as(print_.read(bias), dtype) if bias in print_.shapes else None
    put_rows(model, name, packed_rows(print_, tensor, chosen), chosen, tensor.shape[-1], dtype, held)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
