"""The corpus every user has: the documentation topics and standard-library source of the running Python."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Tests, other people's packages, and tables of characters: much text, little to learn.
_LEFT_OUT = frozenset({
    "__pycache__", "dist-packages", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "msilib",
    "pydoc_data", "site-packages", "test", "tests", "turtledemo",
})  # fmt: skip


@dataclass(frozen=True)
class StandardLibrary:
    """Topics first, then modules in an order without system, until `max_bytes` are reached."""

    max_bytes: int = 8_000_000
    name: str = "default"

    def documents(self) -> Iterator[str]:
        left = self.max_bytes
        for text in self._texts():
            left -= len(text.encode())
            if left < 0:
                return
            yield text

    def identity(self) -> dict[str, object]:
        return {"python": sys.version, "max_bytes": self.max_bytes}

    def _texts(self) -> Iterator[str]:
        yield from _topics()
        for path in _modules(Path(sysconfig.get_path("stdlib"))):
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):  # a few modules are Latin-1 or closed; there are plenty
                continue
            if text.strip():
                yield text


def _topics() -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions strip it
        return []
    return [topics[name] for name in sorted(topics)]


def _modules(root: Path) -> list[Path]:
    """The modules below `root`, by the hash of their name: any bound then cuts a fair sample, not the letter z."""
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        found += (Path(folder) / name for name in names if name.endswith(".py"))
    return sorted(found, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())
