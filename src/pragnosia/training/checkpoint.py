"""Checkpoints: a run at one step, whole or not there at all.

    run/checkpoints/step-00000200/
        config.json, model.safetensors, …   a model directory like any other, with its tokenizer
        moments.safetensors                 the optimisers' state, by parameter
        average.safetensors                 averaged weights, where there are any
        random.safetensors                  the random generators of torch, its devices, and numpy
        state.json                          step, position in the data, python's random generator
        manifest.json                       every file's size: where one differs, this is no checkpoint

Everything is written to a folder with a temporary name, flushed to disk, then renamed. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from pragnosia.errors import ConfigError

MANIFEST = "manifest.json"
_PREFIX, _UNFINISHED = "step-", ".unfinished-"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often the run is saved [steps], and how many of the last checkpoints stay."""

    every: int = 200
    keep: int = 2

    def __post_init__(self) -> None:
        for key in ("every", "keep"):
            if getattr(self, key) < 1:
                raise ConfigError(f"checkpoint.{key} is {getattr(self, key)}; it must be at least 1")


@final
class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a folder, make it the checkpoint of `step`, and drop the oldest beyond `keep`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"{_UNFINISHED}{step:08d}"
        target = self.folder / f"{_PREFIX}{step:08d}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            write(unfinished)
            _seal(unfinished)
            if target.exists():
                shutil.rmtree(target)
            unfinished.rename(target)
            _flush(self.folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        for old in self.complete()[: -self.keep]:
            shutil.rmtree(old)
        return target

    def complete(self) -> list[Path]:
        """Every checkpoint that is whole, oldest first."""
        return [path for path in sorted(self.folder.glob(f"{_PREFIX}*")) if is_whole(path)]

    def latest(self) -> Path | None:
        """The last whole checkpoint."""
        return next(reversed(self.complete()), None)

    def sweep(self) -> None:
        """Remove what an interrupted save left behind."""
        for left in self.folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)


def is_whole(path: Path) -> bool:
    """Whether every file of the manifest is there in its full size."""
    try:
        sizes = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _seal(folder: Path) -> None:
    """Flush every file and write the manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        _flush(path)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in paths}
    (folder / MANIFEST).write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    _flush(folder / MANIFEST)


def _flush(path: Path) -> None:
    """Have the kernel put a file or folder on disk, so that a power cut cannot undo a rename's promise."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a small file under a temporary name, then move it in place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def random_state() -> tuple[dict[str, Tensor], list[Any]]:
    """Every global random generator: tensors for torch and numpy, numbers for python and numpy's rest."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).view(np.int32).copy()),
    }
    if torch.cuda.is_available():
        tensors |= {f"cuda{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    version, words, spare = random.getstate()
    return tensors, [version, list(words), spare, position, has_gauss, gauss]


def restore_random(tensors: dict[str, Tensor], numbers: list[Any]) -> None:
    """Put every generator back to where `random_state` found it."""
    version, words, spare, position, has_gauss, gauss = numbers
    random.setstate((version, tuple(words), spare))
    keys = tensors["numpy"].numpy().view(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda{index}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda{index}"], index)
