"""Mixtures: several sources by weight, a weight being a share of the tokens a model is trained on.

Each part is tokenized and shuffled by itself and drawn from at its share, evenly: after any number of rows every part
is within a row or two of it. A part that runs out begins its next epoch, shuffled anew; none ends the run.
Parts without weights are one corpus: every window of it comes once an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from transformers import PreTrainedTokenizerFast

from pragnosia.data.packing import PackingOptions, Progress, tokenize
from pragnosia.data.shards import TokenShards
from pragnosia.data.sources import Joined, Source
from pragnosia.data.specs import Spec, resolve
from pragnosia.errors import DataError

# For example: "a.txt", ["a.txt@0.7", "b.txt@0.3"], or in YAML {a.txt: 0.7, b.txt: 0.3}.
DataSpec: TypeAlias = "Spec | Sequence[Spec] | Mapping[str, float]"


@dataclass(frozen=True)
class Mixture:
    """Sources and the share of tokens that each gives; the shares sum to one."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]

    @classmethod
    def parse(cls, data: DataSpec) -> Mixture:
        """Read what stands on a command line or in a config.

        Raises:
            DataError: no data, a weight that is not a positive number, weights on some parts only, unknown sources.
        """
        pairs = list(_pairs(data))
        if not pairs:
            raise DataError("no data; give at least one path, recipe or `default`")
        weights = [weight for _, weight in pairs if weight is not None]
        if weights and len(weights) < len(pairs):
            bare = next(spec for spec, weight in pairs if weight is None)
            raise DataError(f"data {bare!s} has no weight while others have; give all of them one (PATH@0.5) or none")
        sources = tuple(resolve(spec) for spec, _ in pairs)
        if not weights:
            return cls((sources[0] if len(sources) == 1 else Joined(sources),), (1.0,))
        return cls(sources, tuple(weight / math.fsum(weights) for weight in weights))

    def documents(self) -> Iterator[str]:
        """All documents, part after part, weights aside."""
        return Joined(self.sources).documents()


@dataclass(frozen=True)
class Corpus:
    """A mixture that has been tokenized."""

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


def _pairs(data: DataSpec) -> Iterator[tuple[Spec, float | None]]:
    if isinstance(data, Mapping):
        yield from ((spec, _weight(spec, weight)) for spec, weight in data.items())
    elif isinstance(data, (str, Path, Source)):
        yield _pair(data)
    else:
        yield from (_pair(spec) for spec in data)


def _pair(spec: Spec) -> tuple[Spec, float | None]:
    """`PATH@0.7` -> (`PATH`, 0.7); what follows the last @ is a weight only where it reads as a number."""
    if not isinstance(spec, str) or "@" not in spec:
        return spec, None
    head, _, tail = spec.rpartition("@")
    try:
        weight = float(tail)
    except ValueError:
        return spec, None
    return head, _weight(head, weight)


def _weight(spec: str, weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise DataError(f"the weight of {spec} is {weight!r}, expected a positive number")
    return float(weight)
