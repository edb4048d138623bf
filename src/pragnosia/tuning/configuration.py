"""What to adapt, and how strongly: W + (alpha / rank) B A (LoRA: Hu et al. 2021, arXiv 2106.09685, eq. 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pragnosia.errors import ConfigError, unknown_name

TARGETS = ("attention", "units", "dense")
"""q_proj, k_proj, v_proj, o_proj | every unit of a bank | dense feed-forwards and shared experts."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters of one model; `scale` is the same for all of them, whatever the rank of each."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attention", "units")

    def __post_init__(self) -> None:
        if not (_is_positive(self.rank) and isinstance(self.rank, int)):
            raise ConfigError(f"lora.rank is {self.rank!r}; it must be a whole number greater than 0")
        if not _is_positive(self.alpha):
            raise ConfigError(f"lora.alpha is {self.alpha!r}; it must be a finite number greater than 0")
        if not self.targets:
            raise ConfigError(f"lora.targets is empty; list some of {', '.join(TARGETS)}")
        for target in self.targets:
            if target not in TARGETS:
                raise ConfigError(unknown_name("lora target", str(target), TARGETS))

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf
