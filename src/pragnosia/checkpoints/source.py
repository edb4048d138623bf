"""Where tensors are read from: by name, slice by slice, never a whole checkpoint at once.

A source knows which tensors there are, their shapes and types, and reads any part of one; `pieces` yields a tensor in
row-major pieces of bounded size. Safetensors directories are one source; llama2.c files and packed gpt-oss units are
others.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Protocol, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pragnosia.checkpoints.admission import check_readable, read_json
from pragnosia.errors import CheckpointError
from pragnosia.units import MIB

__all__ = [
    "DTYPES",
    "INDEX",
    "MAPPED_BYTES",
    "PIECE_BYTES",
    "WEIGHTS",
    "Index",
    "SafetensorsSource",
    "Shape",
    "TensorSource",
    "open_safetensors",
    "pieces",
    "read_json",
]

Shape = tuple[int, ...]
Index = tuple[int | slice, ...]

PIECE_BYTES = 64 * MIB
# Pages of a mapped file count as resident until it is closed, so it is reopened after this much reading.
MAPPED_BYTES = 256 * MIB

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class TensorSource(Protocol):
    """Named tensors that can be read in part."""

    @property
    def names(self) -> Collection[str]:
        """Every tensor there is."""

    def file(self, name: str) -> str:
        """The file that holds `name`, for messages."""

    def shape(self, name: str) -> Shape:
        """Shape of the whole tensor."""

    def dtype(self, name: str) -> torch.dtype:
        """Element type."""

    def read(self, name: str, index: Index = ()) -> Tensor:
        """The part of `name` under `index` of its leading axes; () is all of it."""


def pieces(source: TensorSource, name: str, index: Index = ()) -> Iterator[Tensor]:
    """The part of `name` under `index`, in row-major order, at most about PIECE_BYTES at a time.

    A slice may only stand last in `index`, so that what it selects is contiguous.
    """
    shape = source.shape(name)
    fixed, rows = (index[:-1], index[-1]) if index and isinstance(index[-1], slice) else (index, slice(None))
    if len(fixed) == len(shape):
        yield source.read(name, fixed)
        return
    start, stop, _ = rows.indices(shape[len(fixed)])
    row_bytes = math.prod(shape[len(fixed) + 1 :]) * source.dtype(name).itemsize
    step = max(1, PIECE_BYTES // max(1, row_bytes))
    for first in range(start, stop, step):
        yield source.read(name, (*fixed, slice(first, min(first + step, stop))))


@final
class SafetensorsSource:
    """A directory of safetensors files: one alone, or shards with an index."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = _locate(folder)
        self._open_name: str | None = None
        self._handle: Any = None
        self._mapped = 0

    @property
    def names(self) -> Collection[str]:
        """Every tensor the index (or the one file) lists."""
        return self._files.keys()

    def file(self, name: str) -> str:
        """The shard that holds `name`, or the directory for a tensor that is nowhere."""
        return str(self._folder / self._files.get(name, ""))

    def shape(self, name: str) -> Shape:
        """Shape of the whole tensor."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Element type. Raises CheckpointError for one torch cannot hold."""
        kind = self._slice(name).get_dtype()
        if kind not in DTYPES:
            raise CheckpointError(f"{self.file(name)}: {name} is stored as {kind}; expected {', '.join(DTYPES)}")
        return DTYPES[kind]

    def read(self, name: str, index: Index = ()) -> Tensor:
        """The part of `name` under `index` of its leading axes."""
        if self._mapped > MAPPED_BYTES:
            self.close()
        try:
            part: Tensor = self._slice(name)[index or ...]
        except SafetensorError as error:
            raise CheckpointError(f"{self.file(name)}: cannot read {name}: {error}") from error
        self._mapped += part.nbytes
        return part

    def close(self) -> None:
        """Let go of the open file and the memory its pages take."""
        self._open_name, self._handle, self._mapped = None, None, 0

    def _slice(self, name: str) -> Any:
        wanted = self._files[name]
        if wanted != self._open_name:
            self.close()
            self._handle, self._open_name = open_safetensors(self._folder / wanted), wanted
        try:
            return self._handle.get_slice(name)
        except SafetensorError as error:
            raise CheckpointError(
                f"{self.file(name)}: tensor {name} is missing, though {INDEX} places it there"
            ) from error


def open_safetensors(path: Path) -> Any:
    """`safe_open`, with its complaints as CheckpointError."""
    check_readable(path)
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; the checkpoint is incomplete, fetch that file again") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or corrupt ({error}); fetch it again") from error


def _locate(folder: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a directory; expected one with config.json and *.safetensors")
    if (folder / INDEX).exists():
        return _read_index(folder)
    if (folder / WEIGHTS).exists():
        return dict.fromkeys(open_safetensors(folder / WEIGHTS).keys(), WEIGHTS)
    pickled = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
    if pickled:
        raise CheckpointError(
            f"{folder} holds pickled weights ({pickled[0]}), which can run code when opened; convert them where "
            "you trust them: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) writes safetensors"
        )
    raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}; expected safetensors weights")


def _read_index(folder: Path) -> dict[str, str]:
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointError(f"{folder / INDEX}: weight_map must map tensor names to file names")
    for place in sorted(set(places.values())):
        if Path(place).name != place:
            raise CheckpointError(f"{folder / INDEX} names {place!r}, which lies outside the directory")
        if not (folder / place).exists():
            raise CheckpointError(f"{folder / place} is missing; the checkpoint is incomplete, fetch that file again")
    return places
