"""Packing: documents through a tokenizer into shards, once; asked again, the same shards come back.

A shard folder is named by everything it depends on: the sources (paths, sizes, times of change), the tokenizer,
the settings. So a cache folder can hold many, and none is ever stale.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from pragnosia.data.shards import FORMAT, INDEX, VERSION, TokenShards
from pragnosia.data.sources import Source
from pragnosia.data.specs import Spec, resolve
from pragnosia.data.splitting import Split, by_document, by_tail, check_fraction, fair
from pragnosia.data.tokenizers import fingerprint, plain_encoder, separator, vocabulary_size
from pragnosia.data.whole import whole_folder
from pragnosia.errors import DataError

VALIDATION_FRACTION = 0.02
_BATCH_CHARS = 2 * 1024**2
_BATCH_DOCUMENTS = 2048

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class PackingOptions:
    """What shapes the shards besides the text and the tokenizer."""

    validation_fraction: float = VALIDATION_FRACTION
    max_tokens: int | None = None  # stop reading when train has this many; None: read to the end
    shard_tokens: int = 64 * 1024**2

    def __post_init__(self) -> None:
        check_fraction(self.validation_fraction)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise DataError(f"max_tokens is {self.max_tokens}, expected at least 1")
        if self.shard_tokens < 1:
            raise DataError(f"shard_tokens is {self.shard_tokens}, expected at least 1")


def tokenize(
    source: Spec,
    tokenizer: PreTrainedTokenizerFast,
    cache_dir: Path | str,
    options: PackingOptions | None = None,
    *,
    progress: Progress | None = None,
) -> TokenShards:
    """The shards of `source` in a folder of `cache_dir`, made now or found from an earlier call.

    `progress` is told the bytes of text done so far.

    Raises:
        DataError: text that cannot be read or is too little, a tokenizer without a separator, a place not writable.
    """
    source = resolve(source)
    options = options or PackingOptions()
    folder = Path(cache_dir) / _key(source, tokenizer, options)
    if folder.exists():
        try:
            return TokenShards.open(folder)
        except DataError:  # ours to mend: it is a cache
            shutil.rmtree(folder, ignore_errors=True)
    _write(source, tokenizer, folder, options, progress or _silent)
    return TokenShards.open(folder)


def _silent(num_bytes: int) -> None:
    """No progress is shown."""


def _key(source: Source, tokenizer: PreTrainedTokenizerFast, options: PackingOptions) -> str:
    identity = {
        "version": VERSION,
        "source": source.identity(),
        "tokenizer": fingerprint(tokenizer),
        "separator": separator(tokenizer),
        "options": vars(options),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]


def _write(
    source: Source, tokenizer: PreTrainedTokenizerFast, folder: Path, options: PackingOptions, progress: Progress
) -> None:
    """Split by document; where that gives no fair share (few documents, uneven ones), by tail instead."""
    packer = _Packer(tokenizer, options, progress)
    fraction = options.validation_fraction
    with whole_folder(folder) as partial:
        rule = "document"
        train, validation = packer.pack(source, partial, by_document)
        if fraction and not fair(train.bytes, validation.bytes, fraction):
            rule = "tail"
            train, validation = packer.pack(source, partial, by_tail)
        if not train.tokens:
            raise DataError(f"{source.name} holds too little text: nothing is left to train on")
        index = {
            "format": FORMAT,
            "version": VERSION,
            "source": source.name,
            "identity": source.identity(),
            "tokenizer": fingerprint(tokenizer),
            "vocab_size": vocabulary_size(tokenizer),
            "separator": packer.separator,
            "dtype": packer.dtype.str,
            "validation_fraction": fraction,
            "split_rule": rule,
            "streams": {"train": train.record(), "validation": validation.record()},
        }
        (partial / INDEX).write_text(json.dumps(index, indent=1, ensure_ascii=False), encoding="utf-8")


class _Packer:
    """Turns documents into two streams of ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, options: PackingOptions, progress: Progress) -> None:
        self.engine = plain_encoder(tokenizer)
        self.separator = separator(tokenizer)
        self.dtype = np.dtype("<u2" if vocabulary_size(tokenizer) <= 2**16 else "<u4")
        self.options = options
        self.progress = progress

    def pack(self, source: Source, folder: Path, split: Split) -> tuple[_Writer, _Writer]:
        size = self.options.shard_tokens
        train, validation = _Writer(folder, "train", self.dtype, size), _Writer(folder, "validation", self.dtype, size)
        limit = self.options.max_tokens or float("inf")
        with train, validation:
            for batch in _batches(source.documents()):
                parts = [split(document, self.options.validation_fraction) for document in batch]
                for writer, which in ((train, 0), (validation, 1)):
                    self._encode([part[which] for part in parts if part[which]], writer)
                self.progress(train.bytes + validation.bytes)
                if train.tokens >= limit:
                    break
        return train, validation

    def _encode(self, texts: list[str], writer: _Writer) -> None:
        encodings = self.engine.encode_batch_fast(texts, add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            writer.add(np.array([*encoding.ids, self.separator], self.dtype), len(text.encode()))


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    """Documents in lists big enough to keep every core at work."""
    batch: list[str] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document)
        if chars >= _BATCH_CHARS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


@dataclass
class _Writer:
    """One split on its way to disk."""

    folder: Path
    split: str
    dtype: np.dtype[Any]
    shard_tokens: int
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    shards: list[dict[str, object]] = field(default_factory=list)
    _file: BinaryIO | None = None
    _written: int = 0
    _digest: Any = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._finish()

    def add(self, ids: NDArray[Any], num_bytes: int) -> None:
        """Append one document; it may run over into the next shard."""
        self.documents += 1
        self.tokens += len(ids)
        self.bytes += num_bytes
        while len(ids):
            room = self.shard_tokens - self._written
            self._append(ids[:room])
            ids = ids[room:]

    def record(self) -> dict[str, object]:
        counts = {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes}
        return {**counts, "shards": self.shards}

    def _append(self, ids: NDArray[Any]) -> None:
        if self._file is None:
            self._file = (self.folder / self._name()).open("wb")
            self._digest, self._written = hashlib.sha256(), 0
        content = ids.tobytes()
        self._file.write(content)
        self._digest.update(content)
        self._written += len(ids)
        if self._written >= self.shard_tokens:
            self._finish()

    def _finish(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self.shards.append({"file": self._name(), "tokens": self._written, "sha256": self._digest.hexdigest()})
        self._file, self._written = None, 0

    def _name(self) -> str:
        return f"{self.split}-{len(self.shards):05}.bin"
