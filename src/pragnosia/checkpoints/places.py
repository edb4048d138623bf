"""Where tensors lie: file, offset and bytes of each, from the headers of safetensors files and nothing else.

A unit of a bank is contiguous there, or lies in a few contiguous pieces, so that it can be read alone (extents).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pragnosia.checkpoints.rules import Joined, Rule
from pragnosia.checkpoints.source import DTYPES, INDEX, WEIGHTS, Shape, read_json
from pragnosia.errors import CheckpointError
from pragnosia.kernels.blocks import Extent

_MOST_HEADER = 100 << 20  # the format's own limit
_AT_ONCE = 16 << 20


@dataclass(frozen=True)
class Place:
    """One tensor: `num_bytes` of `file` from `offset`."""

    file: Path
    offset: int
    num_bytes: int
    shape: Shape
    dtype: torch.dtype


Extents = list[Extent]
"""Each piece, in order."""


def places(folder: Path) -> dict[str, Place]:
    """Every tensor of a directory of safetensors files. Raises CheckpointError for what is missing, cut or corrupt."""
    if (folder / INDEX).exists():
        listed = read_json(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict):
            raise CheckpointError(f"{folder / INDEX}: weight_map must map tensor names to file names")
        names = sorted({Path(str(name)).name for name in listed.values()})
    else:
        names = [WEIGHTS]
    found: dict[str, Place] = {}
    for name in names:
        found |= places_in(folder / name)
    return found


def places_in(path: Path) -> dict[str, Place]:
    """Every tensor of one file. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(_MOST_HEADER, size - 8):
                raise CheckpointError(f"{path} is truncated or corrupt (its header has no length); fetch it again")
            header: dict[str, Any] = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; the checkpoint is incomplete, fetch that file again") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is truncated or corrupt (its header is no JSON); fetch it again") from error
    start = 8 + length
    return {name: _place(path, start, size, name, entry) for name, entry in header.items() if name != "__metadata__"}


def _place(path: Path, start: int, size: int, name: str, entry: Mapping[str, Any]) -> Place:
    try:
        (first, last), shape, kind = entry["data_offsets"], tuple(entry["shape"]), entry["dtype"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is corrupt (no place for {name}); fetch it again") from error
    if kind not in DTYPES:
        raise CheckpointError(f"{path}: {name} is stored as {kind}; expected {', '.join(DTYPES)}")
    dtype = DTYPES[kind]
    if last - first != math.prod(shape) * dtype.itemsize or first < 0 or start + last > size:
        raise CheckpointError(f"{path} is truncated or corrupt ({name} reaches past its end); fetch it again")
    return Place(path, start + first, last - first, shape, dtype)


def read_place(place: Place, out: Tensor) -> None:
    """Fill `out`, flat and of the place's type, and leave nothing in the page cache. Raises CheckpointError."""
    view = memoryview(out.view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy arrays are buffers
    try:
        with place.file.open("rb", buffering=0) as file:
            for start in range(0, place.num_bytes, _AT_ONCE):
                part = view[start : min(start + _AT_ONCE, place.num_bytes)]
                filled = 0
                while filled < len(part):
                    got = os.preadv(file.fileno(), [part[filled:]], place.offset + start + filled)
                    if got == 0:
                        raise CheckpointError(f"{place.file} ends too soon; fetch it again")
                    filled += got
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), place.offset + start, len(part), os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise CheckpointError(f"cannot read {place.file}: {error.strerror}") from error


def unit_extents(rule: Rule, unit: int, known: Mapping[str, Place], num_units: int) -> Extents:
    """Where one unit of our tensor lies. Raises CheckpointError for a layout that has to be turned to become ours."""
    if not isinstance(rule, Joined):
        raise CheckpointError(
            f"the units of {rule.ours} lie transposed or interleaved in this checkpoint and cannot be read one by one; "
            "turn it once: pragnosia import SOURCE OUT, then run OUT"
        )
    if rule.num_units is not None:
        parts = [known[part.format(unit=unit)] for part in rule.parts]
        return [Extent(part.file, part.offset, part.num_bytes) for part in parts]
    whole = known[rule.parts[0]]
    size = whole.num_bytes // num_units
    return [Extent(whole.file, whole.offset + unit * size, size)]
