"""Corpus: a mixture that has been tokenized, each part into shards of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from pragnosia.data.mixture import DataSpec, Mixture
from pragnosia.data.packing import PackingOptions, Progress, tokenize
from pragnosia.data.shards import TokenShards


@dataclass(frozen=True)
class Corpus:
    """Parts and the share of tokens that each gives."""

    parts: tuple[TokenShards, ...]
    weights: tuple[float, ...]

    @property
    def train_tokens(self) -> int:
        return sum(part.train.tokens for part in self.parts)

    @property
    def bytes_per_token(self) -> float:
        """Of what training sees: by weight."""
        return math.fsum(w * part.train.bytes_per_token for w, part in zip(self.weights, self.parts, strict=True))

    @property
    def validation_bytes_per_token(self) -> float:
        """Of the validation text, all parts end to end."""
        streams = [part.validation for part in self.parts]
        return sum(stream.bytes for stream in streams) / max(1, sum(stream.tokens for stream in streams))


def build_corpus(
    data: DataSpec | Mixture,
    tokenizer: PreTrainedTokenizerFast,
    cache_dir: Path | str,
    options: PackingOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Corpus:
    """Tokenize every part of `data` into `cache_dir`; `max_tokens` of the options is shared out by weight."""
    mixture = data if isinstance(data, Mixture) else Mixture.parse(data)
    options = options or PackingOptions()
    parts: list[TokenShards] = []
    for source, weight in zip(mixture.sources, mixture.weights, strict=True):
        share = options.max_tokens and math.ceil(options.max_tokens * weight)
        done = sum(stream.bytes for part in parts for stream in part.streams.values())
        told = progress and _after(progress, done)
        parts.append(tokenize(source, tokenizer, cache_dir, replace(options, max_tokens=share), progress=told))
    return Corpus(tuple(parts), mixture.weights)


def as_corpus(data: TokenShards | Corpus) -> Corpus:
    """Shards alone are a corpus of one part."""
    return data if isinstance(data, Corpus) else Corpus((data,), (1.0,))


def _after(progress: Progress, done: int) -> Progress:
    return lambda num_bytes: progress(done + num_bytes)
