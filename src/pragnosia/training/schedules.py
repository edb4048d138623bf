"""Schedules: how the learning rate and the sequence length go through a run.

    rate(s) = peak * min(1, (s + 1) / warmup) * shape((s - warmup) / (steps - warmup))

    constant   1
    cosine     floor + (1 - floor) (1 + cos(pi p)) / 2       Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5
    wsd        1, then linearly to floor over the last share Hu et al. 2024, arXiv 2404.06395 (MiniCPM)

Sequence-length warm-up starts with short rows and doubles them (Li et al. 2022, arXiv 2108.06084). The tokens
of a step stay the same: rows are cut, not dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pragnosia.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The course of a run."""

    name: Literal["constant", "cosine", "wsd"] = "cosine"
    warmup_steps: int = 50
    floor: float = 0.1
    """Learning rate at the end, as a share of its peak."""
    decay_fraction: float = 0.2
    """`wsd` only: the share of the run that decays."""
    first_length: int | None = None
    """Sequence length at the start; None is full length throughout."""
    length_warmup_steps: int = 0
    """Steps until the sequences have full length."""

    def __post_init__(self) -> None:
        for key in ("warmup_steps", "length_warmup_steps"):
            if getattr(self, key) < 0:
                raise ConfigError(f"schedule.{key} is {getattr(self, key)}; it must not be negative")
        for key in ("floor", "decay_fraction"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"schedule.{key} is {getattr(self, key)}; it must be between 0 and 1")
        if self.first_length is not None and self.first_length < 1:
            raise ConfigError(f"schedule.first_length is {self.first_length}; it must be at least 1")
        if (self.first_length is None) != (self.length_warmup_steps == 0):
            raise ConfigError("schedule.first_length and schedule.length_warmup_steps go together; give both")


def _constant(progress: float, config: ScheduleConfig) -> float:
    return 1.0


def _cosine(progress: float, config: ScheduleConfig) -> float:
    return config.floor + (1 - config.floor) * (1 + math.cos(math.pi * progress)) / 2


def _wsd(progress: float, config: ScheduleConfig) -> float:
    if config.decay_fraction == 0:
        return 1.0
    decayed = max(0.0, (progress - 1) / config.decay_fraction + 1)
    return 1 - (1 - config.floor) * decayed


Shape = Callable[[float, ScheduleConfig], float]
SHAPES: dict[str, Shape] = {"constant": _constant, "cosine": _cosine, "wsd": _wsd}


def rate_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`, as a share of its peak."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return SHAPES[config.name](min(progress, 1.0), config)


def check_lengths(config: ScheduleConfig, full: int) -> None:
    """Raise ConfigError unless doubling `first_length` some times gives exactly `full`."""
    first = config.first_length
    if first is None:
        return
    ratio, rest = divmod(full, first)
    if rest or ratio & (ratio - 1):
        raise ConfigError(
            f"schedule.first_length is {first}, batch.sequence_length {full}; "
            "the second must be the first doubled some times, as 32 and 256"
        )


def length_at(config: ScheduleConfig, step: int, full: int) -> int:
    """Tokens in a row at this step."""
    if config.first_length is None or step >= config.length_warmup_steps:
        return full
    doublings = (full // config.first_length).bit_length() - 1
    done = doublings * step // config.length_warmup_steps
    return config.first_length << done
