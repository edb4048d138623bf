"""Setting: how much of a model wakes for a token. What the dial turns, one value that goes from the top to every organ.

    awake     units of a bank, as a share of the usual number             thalamus.py
    gates     tokens that pass a gated layer, as a share of the usual     a layer's gate
    leave     behind which layers a token may leave, and how sure its exit must be of the next one
    memory    what the layers above a token that left remember of it

All of them together are chosen from what was measured (inference/dial.py); a setting of one's own moves one alone.
torch is not loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from pragnosia.errors import ConfigError, unknown_name

MEMORIES = ("exact", "propagated")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Raises ConfigError for one that cannot be."""

    awake: float = 1.0
    """In (0, 1]: the share of the usual number of units that wakes, at least one."""
    gates: float = 1.0
    """In (0, 1]: of the tokens that usually pass a gated layer, the share that does."""
    leave: tuple[tuple[int, float], ...] = ()
    """Layers, ascending, and the confidence from which on a token leaves behind them; none: all layers speak."""
    memory: Literal["exact", "propagated"] = "exact"
    """Of the layers above: as if all had been passed, or drawn from the stream as it left."""

    def __post_init__(self) -> None:
        for name, one in (("awake", "wakes the usual number of units"), ("gates", "lets the usual tokens pass")):
            if not 0 < _number(getattr(self, name)) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must lie in (0, 1], where 1 {one}")
        try:
            leave = tuple((layer, confidence) for layer, confidence in self.leave)
        except (TypeError, ValueError):
            raise ConfigError(f"leave is {self.leave!r}; it must be pairs of a layer and a confidence") from None
        layers = [layer for layer, _ in leave]
        if not all(_number(layer) > 0 and layer == int(layer) for layer in layers) or layers != sorted(set(layers)):
            raise ConfigError(f"tokens leave behind layers {layers}; those must be whole numbers, ascending")
        if not all(_number(confidence) >= 0 for _, confidence in leave):
            raise ConfigError(f"leave is {leave}; a confidence must be a number, 0 or more")
        if self.memory not in MEMORIES:
            raise ConfigError(unknown_name("memory of exits", self.memory, MEMORIES))
        object.__setattr__(self, "leave", leave)

    def write(self) -> dict[str, Any]:
        """As a plain dictionary, for JSON."""
        return asdict(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Setting:
        """From a plain dictionary. Raises ConfigError for an unknown key or an impossible value."""
        known = [entry.name for entry in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(unknown_name("key in Setting", str(key), known))
        return cls(**values)

    def __str__(self) -> str:
        if self == WHOLE:
            return "all of it"
        said = [f"{name} {value:.2g}" for name, value in (("awake", self.awake), ("gates", self.gates)) if value != 1]
        if self.leave:
            sure = " ".join(f"{layer}:{confidence:.2g}" for layer, confidence in self.leave)
            said.append(f"leave {sure} {self.memory}")
        return ", ".join(said)


def _number(value: Any) -> float:
    """What is no number lies in no range."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


WHOLE = Setting()
"""The whole model, as it was trained."""
