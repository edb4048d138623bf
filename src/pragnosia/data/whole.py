"""Folders that appear whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from pragnosia.errors import DataError


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, and vanishes when it does not.

    A folder that is already there keeps its other files; those of the same name are replaced one by one.

    Raises:
        DataError: the place cannot be written (no permission, disk full, a file of that name).
    """
    ours = f".{target.name}.{platform.node()}-"
    partial = target.parent / f"{ours}{os.getpid()}.partial"
    try:
        if target.exists() and not target.is_dir():
            raise DataError(f"cannot write the folder {target}: a file of that name is in the way")
        _sweep(target.parent, ours)
        partial.mkdir(parents=True)
        yield partial
        _move(partial, target)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(parent: Path, ours: str) -> None:
    """Remove what killed processes of this machine left behind."""
    for left in parent.glob(f"{ours}*.partial"):
        pid = left.name.removeprefix(ours).removesuffix(".partial")
        if pid.isdecimal() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid))):
            shutil.rmtree(left, ignore_errors=True)


def _move(partial: Path, target: Path) -> None:
    """Put `partial` in its place: one rename where the place is free, else file by file."""
    if not target.exists():
        partial.replace(target)
        return
    for file in sorted(partial.iterdir()):
        file.replace(target / file.name)
