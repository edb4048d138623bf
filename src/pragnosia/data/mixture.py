"""Mixtures: several sources by weight, a weight being a share of the tokens a model is trained on.

Each part is tokenized and shuffled by itself and drawn from at its share, evenly: after any number of rows every part
is within a row or two of it. A part that runs out begins its next epoch, shuffled anew; none ends the run.
Parts without weights are one corpus: every window of it comes once an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pragnosia.data.files import Files
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

    @property
    def parts(self) -> tuple[Source, ...]:
        """Every source that was named, those without weights too."""
        return tuple(
            part for source in self.sources for part in (source.sources if isinstance(source, Joined) else (source,))
        )

    def documents(self) -> Iterator[str]:
        """All documents, part after part, weights aside."""
        return Joined(self.sources).documents()

    def check(self) -> None:
        """Read a little of every source: what is empty or no text is found here. Raises DataError."""
        for part in self.parts:
            if isinstance(part, Files):
                part.check()
            if next(part.documents(), None) is None:
                raise DataError(f"{part.name} is empty: it holds no text")


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
