"""What people write to name data, turned into sources.

PATH             text, JSON lines, Parquet (also .xz, .gz, .bz2), a folder of them, or several by a pattern: a/*.txt
$NAME/PATH       below the folder that the environment variable NAME names
PATH#COLUMN      the same, with the texts of a table in COLUMN instead of `text`
NAME[:OPTION]    a recipe: wikipedia:ko;  NAME=PATH reads a local copy of it
hf:NAME[:CONFIG[:SPLIT]][#COLUMN]   any dataset on the hub, or a local path, through `datasets`
episodes:PATH[:SHOTS]   the examples of a table, SHOTS (8) of one task a document (data/episodes.py)
default          documentation and standard library of the running Python
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from pragnosia.data.episodes import SHOTS, Episodes
from pragnosia.data.files import Files, is_pattern
from pragnosia.data.hub import HubDataset
from pragnosia.data.recipes import RECIPES, named
from pragnosia.data.rows import Rows
from pragnosia.data.sources import Source
from pragnosia.data.standard_library import StandardLibrary
from pragnosia.errors import DataError, unknown_name

Spec: TypeAlias = "str | Path | Source"
DEFAULT = "default"
_HUB = "hf:"
_EPISODES = "episodes:"
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def resolve(spec: Spec) -> Source:
    """The source that `spec` names.

    Raises:
        DataError: neither a path that exists nor a name that is known; it says what would be.
    """
    if isinstance(spec, Source):
        return spec
    if isinstance(spec, Path):
        return _checked(Files(spec.expanduser()))
    if not spec.strip():
        raise DataError(f"an empty name for data; expected a path, {DEFAULT!r}, {_HUB}NAME or a recipe")
    if spec == DEFAULT:
        return StandardLibrary()
    spec = _with_folders(spec)
    if spec.startswith(_HUB):
        return _hub(spec.removeprefix(_HUB))
    if spec.startswith(_EPISODES) and not Path(spec).exists():
        return _episodes(spec.removeprefix(_EPISODES))
    return named(spec) or _checked(_files(spec))


def documents(spec: Spec) -> Iterator[str]:
    """The documents that `spec` names, one after another."""
    return resolve(spec).documents()


def _with_folders(spec: str) -> str:
    """Environment variables filled in. Raises DataError for one that is not set."""

    def folder(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise DataError(
                f"{spec} lies below the environment variable {name}, which is not set; "
                "set it to the folder, or name texts of your own with --data"
            )
        return os.environ[name]

    return spec if Path(spec).exists() else _VARIABLE.sub(folder, spec)


def _hub(spec: str) -> Source:
    rest, _, column = spec.partition("#")
    expected = DataError(f"cannot read {_HUB}{spec}; expected {_HUB}NAME[:CONFIG[:SPLIT]][#COLUMN]")
    if not rest:
        raise expected
    rows = Rows(column=column or "text")
    if Path(rest).expanduser().exists():
        return HubDataset(path=str(Path(rest).expanduser()), rows=rows)
    path, config, split, *extra = [*rest.split(":"), "", ""]
    if not path or any(extra):
        raise expected
    dataset = HubDataset(path=path, config=config or None, rows=rows)
    return replace(dataset, split=split) if split else dataset


def _episodes(spec: str) -> Episodes:
    path, colon, shots = spec.rpartition(":")
    if not colon or Path(spec).exists():
        path, shots = spec, str(SHOTS)
    if not path or not shots.isdecimal():
        raise DataError(
            f"cannot read {_EPISODES}{spec}; expected {_EPISODES}PATH[:SHOTS], as in {_EPISODES}tasks.jsonl:8"
        )
    return Episodes(_checked(Files(Path(path).expanduser())), int(shots))


def _files(spec: str) -> Files:
    path = Path(spec).expanduser()
    head, sharp, column = spec.rpartition("#")
    if sharp and not path.exists():
        return Files(Path(head).expanduser(), Rows(column=column))
    return Files(path)


def _checked(files: Files) -> Files:
    """Fail before any work where a path is missing, and offer the names it may have been meant as."""
    root = files.root
    try:
        missing = not root.exists()
    except OSError:
        missing = False  # closed, not missing: paths() says so
    if missing and root.parent == Path() and not root.suffix and not is_pattern(root):
        raise DataError(f"no such file or folder, and {unknown_name('recipe', str(root), [DEFAULT, *RECIPES])}")
    files.paths()
    return files
