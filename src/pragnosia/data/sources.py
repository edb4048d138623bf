"""Source: where documents come from, readable again and again, with an identity that a cache can be keyed by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


@runtime_checkable
class Source(Protocol):
    """Documents of one origin; every call of `documents` begins anew, in the same order."""

    @property
    def name(self) -> str:
        """What people call it in reports and errors."""

    def documents(self) -> Iterator[str]:
        """The texts one after another, none of them empty; DataError where they cannot be read."""

    def identity(self) -> dict[str, object]:
        """JSON that changes whenever the documents may have changed."""


@dataclass(frozen=True)
class Texts:
    """Documents that are already in memory."""

    texts: Sequence[str] = field(repr=False)
    name: str = "texts"

    def documents(self) -> Iterator[str]:
        return (text for text in self.texts if text.strip())

    def identity(self) -> dict[str, object]:
        digest = hashlib.sha256()
        for text in self.texts:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return {"texts": digest.hexdigest()}


@dataclass(frozen=True)
class Joined:
    """Several sources read one after another as if they were one."""

    sources: tuple[Source, ...]

    @property
    def name(self) -> str:
        return " + ".join(source.name for source in self.sources)

    def documents(self) -> Iterator[str]:
        for source in self.sources:
            yield from source.documents()

    def identity(self) -> dict[str, object]:
        return {"joined": [source.identity() for source in self.sources]}
