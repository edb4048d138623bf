"""Calibration: what each input of a matrix brings on some text, so that packing errs where little comes in.

    error of a row = sum_k E[x_k^2] (w_k - w'_k)^2      the output's, of inputs that do not go together

E[x_k^2] for every column of every matrix is all that is kept. It is gathered above this floor (measure/calibration.py)
and lies beside what was packed so far, so that a packing that was stopped goes on with the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pragnosia.errors import CheckpointError

STATISTICS = "calibration.safetensors"


@dataclass(frozen=True)
class Calibration:
    """A text to calibrate on, and the way to what it brings."""

    digest: str
    """SHA-256 of the tokens and of how they are cut: another one gives other bits."""
    num_tokens: int
    gather: Callable[[], Mapping[str, Tensor]]
    """By our tensor name: mean squares (K,) of a matrix's inputs, (U, K) of a bank's; fp32."""

    def note(self) -> dict[str, object]:
        """For JSON."""
        return {"sha256": self.digest, "tokens": self.num_tokens}


@final
class Importance:
    """Mean squares as they lie in a file; only what is asked for is read."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / STATISTICS
        try:
            with safe_open(self.path, framework="pt") as file:
                self.names = frozenset(file.keys())
        except (SafetensorError, OSError) as error:
            raise self._damaged(error) from error

    def of(self, name: str) -> Tensor | None:
        """Of one of our tensors; None for what has no inputs that were seen."""
        if name not in self.names:
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                found: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise self._damaged(error) from error
        return found

    def _damaged(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged ({error}); remove it and run the same command again")


def importance_in(folder: Path, calibration: Calibration) -> Importance:
    """What lies in a folder, or is gathered now; written whole or not at all."""
    path = folder / STATISTICS
    if not path.is_file():
        part = path.with_suffix(".tmp")
        save_file({name: rows.contiguous() for name, rows in calibration.gather().items()}, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    return Importance(folder)


def unit_importance(rows: Tensor | None, unit: int) -> Tensor | None:
    """One unit's, of a bank's (U, K)."""
    return None if rows is None else rows[unit]


def even(mean_squares: Tensor) -> Tensor:
    """(..., K) scaled to a mean of 1 along K, which changes no choice; inputs that never came count alike."""
    mean = mean_squares.mean(-1, keepdim=True)
    return torch.where(mean == 0, 1.0, mean_squares / mean)
