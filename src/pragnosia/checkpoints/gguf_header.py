"""The header of a GGUF file: its metadata, and where each tensor lies.

    "GGUF" | version | number of tensors, of entries | entries: key, type, value | tensors: name, sides, type, offset
    then, from an aligned place on, the tensors' data; all little endian

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The gguf library's own reader keeps an array for each
word of the vocabulary (2 s and 100 MiB for 32,000 words), so this one walks over them; sizes and values are the
library's.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from pragnosia.errors import CheckpointError

MAGIC = b"GGUF"
TOKENS, KIND = "tokenizer.ggml.tokens", "tokenizer.ggml.model"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_LONG = 1 << 12
"""An array of strings that is longer is a vocabulary's: it is stepped over."""


@dataclass(frozen=True)
class Tensor:
    """One tensor: its numbers' type, its shape as torch has it, its first byte and how many there are."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    @property
    def row_bytes(self) -> int:
        """Of one row: the last axis."""
        return self.num_bytes // max(1, math.prod(self.shape[:-1]))


@dataclass(frozen=True)
class Header:
    """What stands before the data; of long arrays of strings only the length."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it."""
        return str(self.metadata.get("general.architecture"))


def gguf_in(path: str | Path) -> Path | None:
    """The GGUF file that `path` is, or the only one in a directory without other weights; None where there is none.

    Raises CheckpointError where a directory holds several.
    """
    path = Path(path)
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        return path
    try:
        found = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    except OSError:  # no directory, or none that can be read: whoever reads on will say what is wrong
        return None
    if not found or any(path.glob("*.safetensors")) or (path / "packed.json").exists():
        return None
    if len(found) > 1:
        raise CheckpointError(f"{path} holds {len(found)} GGUF files; name one, as {found[0]}")
    return found[0]


def has_vocabulary(header: Header) -> bool:
    """Whether the file describes a tokenizer."""
    return bool(header.metadata.get(TOKENS)) and header.metadata.get(KIND) not in (None, "none", "no_vocab")


def read_header(path: Path) -> Header:
    """The header of `path`. Raises CheckpointError for what is cut, foreign or of a type nobody knows."""
    try:
        known = path.stat()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    return _read_header(path, known.st_size, known.st_mtime_ns)


@lru_cache(maxsize=4)
def _read_header(path: Path, size: int, _time: int) -> Header:
    sizes = _sizes()
    try:
        with path.open("rb") as file:
            header = _Parser(path, file, size).header(sizes)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    parts = header.metadata.get("split.count", 1)
    if parts > 1:
        raise CheckpointError(f"{path} is one of {parts} parts; join them first: llama-gguf-split --merge {path} OUT")
    return header


def _sizes() -> dict[int, tuple[str, int, int]]:
    """Of each type of numbers: its name, how many make a block, and a block's bytes."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise CheckpointError("GGUF files need the gguf library: pip install 'pragnosia[gguf]'") from error
    return {int(kind): (kind.name, *size) for kind, size in GGML_QUANT_SIZES.items()}


class _Parser:
    """Reads on from wherever it stands in the file."""

    def __init__(self, path: Path, file: BufferedReader, size: int) -> None:
        self.path, self.file, self.size = path, file, size

    def header(self, sizes: dict[int, tuple[str, int, int]]) -> Header:
        """All of it."""
        if self.take(4) != MAGIC:
            raise CheckpointError(f"{self.path} does not begin as a GGUF file does; fetch it again")
        version = self.number("I")
        if version not in _VERSIONS:
            raise CheckpointError(f"{self.path} is GGUF of version {version}, expected 2 or 3, little endian")
        num_tensors, num_entries = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self.string()
            metadata[key] = self.value(self.number("I"))
        laid = [self.tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self.damaged(f"general.alignment is {alignment!r}")
        start = -(-self.file.tell() // alignment) * alignment
        return Header(metadata, {name: self.placed(name, told, start, sizes) for name, told in laid})

    def value(self, kind: int) -> Any:
        """One entry's value; the length alone of a long array of strings."""
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise self.damaged(f"an entry of type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _NUMBERS:
            code = _NUMBERS[inner]
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code))))
        read: Callable[[], Any] = self.string if inner == _STRING and count < _LONG else self.skip_string
        if inner == _ARRAY:
            return [self.value(_ARRAY) for _ in range(count)]
        if inner != _STRING:
            raise self.damaged(f"an array of type {inner}")
        values = [read() for _ in range(count)]
        return values if count < _LONG else count

    def tensor(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        """A tensor's name; its shape, type and offset."""
        name, sides = self.string(), self.number("I")
        if sides > 4:
            raise self.damaged(f"tensor {name} of {sides} axes")
        shape = tuple(self.number("Q") for _ in range(sides))[::-1]  # the quickest axis comes first there
        return name, (shape, self.number("I"), self.number("Q"))

    def placed(
        self, name: str, told: tuple[tuple[int, ...], int, int], start: int, sizes: dict[int, tuple[str, int, int]]
    ) -> Tensor:
        """Where a tensor lies in the file."""
        shape, kind, offset = told
        if kind not in sizes:
            raise CheckpointError(
                f"{self.path}: tensor {name} is of quantisation type {kind}, which the installed gguf library does not "
                "know; upgrade it (pip install -U gguf), or use a file in Q4_K_M or Q8_0"
            )
        called, block, block_bytes = sizes[kind]
        if not shape or shape[-1] % block:
            raise self.damaged(f"tensor {name} of shape {shape} in {called}")
        num_bytes = math.prod(shape) // block * block_bytes
        if start + offset + num_bytes > self.size:
            raise CheckpointError(
                f"{self.path} is truncated: tensor {name} ends at byte {start + offset + num_bytes}, the file at "
                f"{self.size}; fetch it again"
            )
        return Tensor(called, shape, start + offset, num_bytes)

    def take(self, count: int) -> bytes:
        """So many bytes."""
        self.check_left(count)
        return self.file.read(count)

    def check_left(self, count: int) -> None:
        """Raise CheckpointError unless so many bytes follow."""
        if self.file.tell() + count > self.size:
            raise CheckpointError(f"{self.path} is truncated or damaged: it ends inside its header; fetch it again")

    def number(self, code: str) -> Any:
        """One number."""
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        """One text. Vocabularies may hold bytes that are none."""
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def skip_string(self) -> None:
        """Over one text."""
        length = self.number("Q")
        self.check_left(length)
        self.file.seek(length, os.SEEK_CUR)

    def damaged(self, what: str) -> CheckpointError:
        """The error for a header that makes no sense."""
        return CheckpointError(f"{self.path} is damaged: its header tells of {what}; fetch it again")
