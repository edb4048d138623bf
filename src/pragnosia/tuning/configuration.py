"""What of a model gets an adapter, and how large."""

from __future__ import annotations

from dataclasses import dataclass

from pragnosia.errors import ConfigError, unknown_name

TARGETS = ("attention", "units", "dense")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attention", "units")
    """`attention`: query, key, value and output projections; `units`: every unit of the banks; `dense`: dense
    feed-forwards and shared units."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"the rank of the adapters is {self.rank}; it must be at least 1")
        if not self.alpha > 0:
            raise ConfigError(f"alpha is {self.alpha}; it must be greater than 0")
        if not self.targets:
            raise ConfigError(f"no target for adapters; name one or more of {', '.join(TARGETS)}")
        for target in self.targets:
            if target not in TARGETS:
                raise ConfigError(unknown_name("target for adapters", target, TARGETS))

    @property
    def scale(self) -> float:
        """The factor on what an adapter adds."""
        return self.alpha / self.rank
