"""The exception tree: everything Pragnosia raises on purpose.

    PragnosiaError                        catch this to catch us all; exit code 1
    ├── UserError (also ValueError)       the input can be mended by whoever gave it; exit code 2
    │   ├── ConfigError                   a configuration key or value
    │   ├── CheckpointError               a model directory that is missing, corrupt or does not fit
    │   │   └── UnsupportedArchitectureError
    │   ├── DataError                     text, shards or tokenizers that cannot be used
    │   ├── PromptError                   a prompt or sampling option that cannot be used
    │   ├── SimulationError               a spiking network that cannot run on
    │   ├── StoreError                    an episodic store or a lesson that cannot be used
    │   └── BudgetError                   memory, time or energy that does not suffice
    └── TrainingError                     a run that had to stop: not a number, disk full; exit code 1
        └── InterruptedTrainingError      a run that was asked to stop, and did; exit code 130

A message is one line: what, got, expected, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class PragnosiaError(Exception):
    """Base of everything raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(PragnosiaError, ValueError):
    """The input can be mended by whoever gave it."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration key or value."""


class CheckpointError(UserError):
    """A model directory that is missing, corrupt or does not fit."""


class UnsupportedArchitectureError(CheckpointError):
    """A model family we cannot read."""


class DataError(UserError):
    """Text, shards or tokenizers that cannot be used."""


class PromptError(UserError):
    """A prompt or sampling option that cannot be used."""


class SimulationError(UserError):
    """A spiking network that cannot run on: a membrane that is no number, a population that never or always fires."""


class StoreError(UserError):
    """An episodic store or a lesson that cannot be used."""


class BudgetError(UserError):
    """Memory, time or energy that does not suffice."""


class TrainingError(PragnosiaError):
    """A run that had to stop although its input was sound."""


class InterruptedTrainingError(TrainingError):
    """A run that was asked to stop, and saved everything first."""

    exit_code = 130


def unknown_name(kind: str, got: str, known: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> str:
    """The one line for a name that is not in a table: what was meant, and what there is.

    `elsewhere` maps names that people know from other places to ours.
    """
    names, aliases = sorted(known), elsewhere or {}
    close = difflib.get_close_matches(got, [*names, *aliases], n=1)
    meant = f" Did you mean {aliases.get(close[0], close[0])!r}?" if close else ""
    return f"unknown {kind} {got!r}.{meant} Available: {', '.join(names)}"
