"""Learners: what of a model learns, and how it is kept. The loop (tuner.py) asks no more of them than this.

lora      adapters of low rank, all of them at every step        adapter_learner.py
blocks    the model's own weights, block after block             block_learner.py
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from pragnosia.kernels.pool import UnitPool
from pragnosia.model.cortex import Cortex
from pragnosia.training.checkpoint import Checkpoints


class Learner(Protocol):
    """A model of which something learns."""

    @property
    def model(self) -> Cortex:
        """Whole, to compute with."""

    @property
    def pool(self) -> UnitPool | None:
        """That units or layers come from, where there is a budget."""

    def begin(self, step: int) -> None:
        """Make ready for a step and forget the slopes of the last one."""

    def move(self, factor: float) -> Tensor:
        """Let what learns take a step at `factor` times its rate; the norm of the slopes."""

    def write(self, folder: Path) -> Mapping[str, Any]:
        """Fill a checkpoint with tensors; what else there is to know, for JSON."""

    def read(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Take up what was written. Raises CheckpointError, or what reading raises."""

    def saved(self, checkpoints: Checkpoints) -> None:
        """A checkpoint is complete, and older ones may be gone."""

    def end(self, step: int) -> None:
        """Nothing learns any more: the model can be examined."""

    def result(self) -> Mapping[str, Any]:
        """Leave what was learned in the run's folder; what a report says of it."""

    def clean(self) -> None:
        """The report is written: what was kept for resuming may go."""
