"""Domains: texts by what they are about. Labels come from the data: `domain=SPEC`, or the entries of one folder.

    language=books.txt reasoning=maths.jsonl     each what stands before its first `=`
    texts/                                       of texts/language.txt and texts/reasoning/: language, reasoning

A domain named more than once has all the texts it was given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pragnosia.data.mixture import Mixture
from pragnosia.data.sources import Joined, Source
from pragnosia.data.specs import resolve
from pragnosia.errors import DataError

_LABELLED = re.compile(r"([\w-]+)=(.+)", re.DOTALL)


def read_domains(data: Sequence[str] | Mapping[str, float]) -> dict[str, Source]:
    """Every domain's texts, in the order they are named. Raises DataError for fewer than two."""
    if isinstance(data, Mapping):
        raise DataError("domains have equal shares; list them as domain=PATH, without weights")
    folder = Path(data[0]).expanduser() if len(data) == 1 else None
    if folder is not None and folder.is_dir():
        named = [(entry.name.partition(".")[0], str(entry)) for entry in sorted(folder.iterdir()) if _shown(entry)]
    else:
        named = [_labelled(spec) for spec in data]
    found: dict[str, list[Source]] = {}
    for name, spec in named:
        found.setdefault(name, []).append(resolve(spec))
    if len(found) < 2:
        what = f"{folder} holds" if folder is not None and folder.is_dir() else "the data name"
        told = f"one domain, {next(iter(found))!r}" if found else "no domain"
        raise DataError(
            f"{what} {told}; lobes take two or more, as domain=PATH each, or a folder with an entry for each"
        )
    return {name: parts[0] if len(parts) == 1 else Joined(tuple(parts)) for name, parts in found.items()}


def as_mixture(domains: Mapping[str, Source]) -> Mixture:
    """An equal share for every domain, in their order."""
    return Mixture(tuple(domains.values()), (1 / len(domains),) * len(domains))


def _shown(entry: Path) -> bool:
    return not entry.name.startswith((".", "_"))


def _labelled(spec: str) -> tuple[str, str]:
    """`language=books.txt` -> (`language`, `books.txt`)."""
    found = _LABELLED.fullmatch(spec)
    if found is None:
        raise DataError(f"{spec} names no domain; write domain=PATH, or name one folder with an entry for each domain")
    return found[1], found[2]
