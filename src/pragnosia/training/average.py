"""Averaged weights: an exponential moving average of the path the weights took.

    m <- d m + (1 - d) w      every k steps with d = decay^k: the walk over all weights is paid once in k

Polyak & Juditsky 1992, doi:10.1137/0330046.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from pragnosia.errors import ConfigError
from pragnosia.plasticity.origin import Change, Origin


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """Whether the average is what the run is for, or stands beside it."""

    decay: float = 0.999
    every: int = 5
    """Steps between two updates."""
    save: Literal["separate", "model"] = "separate"
    """`model`: the run's model is the average; `separate`: the average is saved in `ema/` beside it."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"ema.decay is {self.decay}; it must be at least 0 and below 1")
        if self.every < 1:
            raise ConfigError(f"ema.every is {self.every}; it must be at least 1")


@final
class Average:
    """The averages of some parameters, by name."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], config: AverageConfig) -> None:
        self.config = config
        self.weights = dict(parameters)
        self.means = {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after `step` steps, if it is time."""
        if step % self.config.every:
            return
        # Early on the first weights would dominate: let the average forget faster while it is young.
        decay = min(self.config.decay, step / (step + 10)) ** self.config.every
        torch._foreach_lerp_(list(self.means.values()), list(self.weights.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the context the model holds the averages."""
        own = {name: weight.data for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            weight.data = self.means[name]
        try:
            yield
        finally:
            for name, weight in self.weights.items():
                weight.data = own[name]

    @torch.no_grad()
    def follow(self, change: Change, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Take over the parameters of a model that changed its structure: averages go along, newborns begin theirs."""
        old, self.weights = self.means, dict(parameters)
        self.means = {}
        for name, weight in self.weights.items():
            origin = change.origins.get(name, Origin(name))
            drawn = weight.detach().clone()
            known = origin.name in old
            self.means[name] = origin.weights(old[str(origin.name)], drawn, name, change.seed) if known else drawn

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up averages saved before."""
        for name, mean in self.means.items():
            mean.copy_(state[name])
