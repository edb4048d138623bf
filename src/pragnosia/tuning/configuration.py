"""What to adapt, and how strongly: W + (alpha / rank) B A (LoRA: Hu et al. 2021, arXiv 2106.09685, eq. 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.model.organs import require_positive, require_whole

TARGETS = ("attention", "units", "dense")
"""q_proj, k_proj, v_proj, o_proj | every unit of a bank | dense feed-forwards and shared experts."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters of one model; `scale` is the same for all of them, whatever the rank of each."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attention", "units")

    def __post_init__(self) -> None:
        require_whole("lora", rank=self.rank)
        require_positive("lora", alpha=self.alpha)
        if not math.isfinite(self.alpha):
            raise ConfigError(f"lora.alpha is {self.alpha}; it must be finite")
        if not self.targets:
            raise ConfigError(f"lora.targets is empty; list some of {', '.join(TARGETS)}")
        for target in self.targets:
            if target not in TARGETS:
                raise ConfigError(unknown_name("lora target", str(target), TARGETS))

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank
