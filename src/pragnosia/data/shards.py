"""Token shards: packed text on disk, memory-mapped, with an index that knows its tokens and its bytes.

bits per byte = nats per token / ln 2 * tokens / bytes
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from pragnosia.data.tokenizers import fingerprint
from pragnosia.errors import DataError

INDEX = "index.json"
FORMAT = "pragnosia-shards"
VERSION = 1
_BLOCK = 4 * 1024**2


@dataclass(frozen=True)
class Shard:
    """One file of token ids, nothing but them."""

    path: Path
    tokens: int
    dtype: str
    sha256: str

    @cached_property
    def ids(self) -> NDArray[np.unsignedinteger[Any]]:
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.tokens,))

    def check_size(self) -> None:
        expected = self.tokens * np.dtype(self.dtype).itemsize
        got = self.path.stat().st_size if self.path.exists() else None
        if got != expected:
            found = "is missing" if got is None else f"is cut short or overlong: {got} bytes, expected {expected}"
            raise DataError(f"the shard {self.path} {found}; delete {self.path.parent} and tokenize again")

    def check_content(self) -> None:
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        if digest.hexdigest() != self.sha256:
            raise DataError(f"the shard {self.path} is damaged; delete {self.path.parent} and tokenize again")


@dataclass(frozen=True)
class TokenStream:
    """The documents of one split, end to end, each followed by the separator token."""

    shards: tuple[Shard, ...]
    documents: int
    tokens: int
    bytes: int  # UTF-8 bytes of the documents as they were read; separators have none

    def __len__(self) -> int:
        return self.tokens

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text for each token, separators counted as tokens, for they are predicted too."""
        return self.bytes / max(1, self.tokens)

    def bits_per_byte(self, nats_per_token: float) -> float:
        """What a mean loss over this stream comes to, whatever the tokenizer."""
        return nats_per_token / math.log(2) * self.tokens / max(1, self.bytes)

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """`length` tokens from `start` on, across shards."""
        if not 0 <= start <= start + length <= self.tokens:
            raise DataError(f"tokens {start} to {start + length} asked for, the stream has {self.tokens}")
        pieces = []
        which = bisect_right(self._starts, start) - 1
        while length > 0:
            offset = start - self._starts[which]
            piece = self.shards[which].ids[offset : offset + length]
            pieces.append(piece)
            start, length, which = start + len(piece), length - len(piece), which + 1
        return np.concatenate(pieces).astype(np.int64) if pieces else np.empty(0, np.int64)

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(shard.tokens for shard in self.shards)]


@dataclass(frozen=True)
class TokenShards:
    """A corpus that has been tokenized: train and validation, and what they were made with."""

    folder: Path
    train: TokenStream
    validation: TokenStream
    vocab_size: int
    tokenizer: str  # fingerprint
    separator: int
    split_rule: str
    source: str

    @classmethod
    def open(cls, folder: Path | str, tokenizer: PreTrainedTokenizerFast | None = None) -> TokenShards:
        """Map the shards in `folder`, checking sizes, and the tokenizer where one is given.

        Raises:
            DataError: no index, a corrupt one, shards that are missing or cut short, another tokenizer.
        """
        folder = Path(folder)
        index = _read_index(folder)
        try:
            shards = cls(
                folder=folder,
                train=_stream(folder, index, "train"),
                validation=_stream(folder, index, "validation"),
                vocab_size=int(index["vocab_size"]),
                tokenizer=str(index["tokenizer"]),
                separator=int(index["separator"]),
                split_rule=str(index["split_rule"]),
                source=str(index["source"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder / INDEX} is corrupt ({error!r}); delete {folder} and tokenize again") from error
        for shard in (*shards.train.shards, *shards.validation.shards):
            shard.check_size()
        if tokenizer is not None:
            shards.check_tokenizer(tokenizer)
        return shards

    @property
    def streams(self) -> dict[str, TokenStream]:
        return {"train": self.train, "validation": self.validation}

    @cached_property
    def digest(self) -> str:
        """What the tokens are, wherever they lie: equal for equal tokens made by equal tokenizers."""
        content = [self.tokenizer, *(shard.sha256 for stream in self.streams.values() for shard in stream.shards)]
        return hashlib.sha256(" ".join(content).encode()).hexdigest()

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raise DataError where the shards were made with another tokenizer."""
        got = fingerprint(tokenizer)
        if got != self.tokenizer:
            raise DataError(
                f"the shards in {self.folder} were made with tokenizer {self.tokenizer[:12]}, got {got[:12]}; "
                "tokenize again with the tokenizer of the model"
            )

    def check_content(self) -> None:
        """Read every shard and compare its checksum. Raises DataError for a damaged one."""
        for stream in self.streams.values():
            for shard in stream.shards:
                shard.check_content()


def _read_index(folder: Path) -> Mapping[str, Any]:
    file = folder / INDEX
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no shards in {folder}: it has no {INDEX}") from None
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file} is corrupt ({error}); delete {folder} and tokenize again") from error
    if not isinstance(index, dict) or (index.get("format"), index.get("version")) != (FORMAT, VERSION):
        raise DataError(f"{file} is not an index of {FORMAT}, version {VERSION}; tokenize again")
    return index


def _stream(folder: Path, index: Mapping[str, Any], split: str) -> TokenStream:
    record = index["streams"][split]
    dtype = np.dtype(index["dtype"]).str
    shards = tuple(
        Shard(folder / Path(str(shard["file"])).name, int(shard["tokens"]), dtype, str(shard["sha256"]))
        for shard in record["shards"]
    )
    return TokenStream(shards, int(record["documents"]), int(record["tokens"]), int(record["bytes"]))
