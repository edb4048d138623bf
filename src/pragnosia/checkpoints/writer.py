"""Safetensors written as a stream: the header is laid out ahead, so no tensor need ever be whole in memory.

    file = header length (8 bytes, little endian) | JSON header | raw tensors, row-major, in header order

Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import torch
from torch import Tensor

from pragnosia.checkpoints.admission import check_vacant
from pragnosia.checkpoints.source import DTYPES, INDEX, WEIGHTS, Shape
from pragnosia.errors import CheckpointError
from pragnosia.units import GIB

SHARD_BYTES = 2 * GIB
_PARTIAL = ".partial"
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor to write: what it is, and where its pieces come from when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: Shape
    pieces: Callable[[], Iterator[Tensor]]

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_weights(folder: Path, entries: Sequence[Entry], shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Write `entries` in order, in files of at most `shard_bytes` (or one tensor); the names of the files."""
    shards = _split(entries, shard_bytes)
    if len(shards) == 1:
        write_safetensors(folder / WEIGHTS, shards[0])
        return [WEIGHTS]
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file_name, shard)
        places |= dict.fromkeys((entry.name for entry in shard), file_name)
    total = sum(entry.nbytes for entry in entries)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
    return sorted(set(places.values()))


def write_safetensors(path: Path, entries: Sequence[Entry]) -> None:
    """Write one file, piece by piece."""
    with path.open("wb") as file:
        file.write(_header(entries))
        for entry in entries:
            written = sum(_append(file, piece, entry) for piece in entry.pieces())
            assert written == entry.nbytes, f"{entry.name}: {written} bytes written, {entry.nbytes} declared"
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: dict[str, Any]) -> None:
    """JSON as transformers writes it: two spaces, a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _split(entries: Sequence[Entry], shard_bytes: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if shards[-1] and filled + entry.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += entry.nbytes
    return shards


def _header(entries: Sequence[Entry]) -> bytes:
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + entry.nbytes
        fields[entry.name] = {
            "dtype": _DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers map the tensors in place, so they should start aligned
    return len(text).to_bytes(8, "little") + text


def _append(file: BinaryIO, piece: Tensor, entry: Entry) -> int:
    assert piece.dtype == entry.dtype, f"{entry.name}: piece of {piece.dtype}, declared {entry.dtype}"
    return file.write(piece.contiguous().reshape(-1).view(torch.uint8).numpy().data)


@contextlib.contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A hidden directory beside `out` that takes its place at the end; on any failure nothing is left.

    Raises CheckpointError if `out` exists and is not an empty directory, or cannot be written.
    """
    check_vacant(out)
    out = out.resolve()
    partial = out.with_name(f".{out.name}.{os.getpid()}{_PARTIAL}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        partial.mkdir()
        yield partial
        partial.replace(out)
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Remove what earlier attempts at `out` left that were killed before they could do so themselves."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*{_PARTIAL}"):
        process = left.name.removesuffix(_PARTIAL).rpartition(".")[2]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)
