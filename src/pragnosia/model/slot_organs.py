"""Configurations of what remembers beside attention's keys and values: working memory, the workspace, fading.

All are off unless a configuration names them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pragnosia.model.organs import Organ, require, require_positive, require_whole


def _layers(owner: str, given: Any) -> list[int]:
    """Ascending, each once. Raises ConfigError."""
    listed = isinstance(given, list | tuple) and len(given) > 0
    require(listed, f"{owner}.layers is {given!r}; name layers, as in [1, 3]")
    for layer in given:
        whole = isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0
        require(whole, f"{owner}.layers names {layer!r}; layers are counted 0, 1, 2 and so on")
    return sorted(set(given))


@dataclass(frozen=True, kw_only=True)
class SlotsConfig(Organ, ABC):
    """What organs of slots share: tokens of a segment compete for slots, which all later segments read."""

    layers: Sequence[int]
    """That write and read, counted from 0; each has slots of its own."""
    num_slots: int = 64
    segment: int = 64
    """Tokens; slots change where one ends. Attention's window should reach as far at least."""
    num_heads: int = 4
    head_dim: int = 32
    fading: float = 0.1
    """How much strength a slot loses with every segment, in units of a logit; 0: only the stronger displace it."""

    def __post_init__(self) -> None:
        name = self.name()
        object.__setattr__(self, "layers", _layers(name, self.layers))
        sizes = {key: getattr(self, key) for key in ("num_slots", "segment", "num_heads", "head_dim")}
        require_whole(name, **sizes)
        fading: Any = self.fading
        number = isinstance(fading, int | float) and not isinstance(fading, bool)
        require(number and 0 <= fading < float("inf"), f"{name}.fading is {fading!r}; it must be a number, 0 or more")

    @classmethod
    @abstractmethod
    def name(cls) -> str:
        """As it is called in a configuration."""

    @property
    def entry_width(self) -> int:
        """E: numbers in an entry, its keys and values."""
        return 2 * self.num_heads * self.head_dim

    def num_entries(self, writers: int) -> int:
        """That are kept of a text: the slots, and what the tokens of one segment offer."""
        return self.num_slots + self.segment * writers


@dataclass(frozen=True, kw_only=True)
class WorkingMemoryConfig(SlotsConfig):
    """Working memory: the strongest tokens of all earlier segments, as keys and values (working_memory.py)."""

    @classmethod
    def name(cls) -> str:
        """As it is called in a configuration."""
        return "working_memory"


@dataclass(frozen=True, kw_only=True)
class WorkspaceConfig(SlotsConfig):
    """Global workspace: what a layer's modules say competes for a few slots that all later tokens read."""

    num_slots: int = 8
    fading: float = 1.0

    @classmethod
    def name(cls) -> str:
        """As it is called in a configuration."""
        return "workspace"


def writers_of(config: Any, layer: int) -> tuple[str, ...]:
    """Names of the modules that compete for a layer's workspace, in order."""
    recalls = config.working_memory is not None and layer in config.working_memory.layers
    return (config.mixers[layer], config.feed_forwards[layer], *(["working_memory"] * recalls))


def slots_of(config: Any) -> list[tuple[SlotsConfig, int]]:
    """Every organ of slots in a model, and how many writers it has."""
    memory, space = config.working_memory, config.workspace
    found: list[tuple[SlotsConfig, int]] = [(memory, 1)] * (0 if memory is None else len(memory.layers))
    return found + [(space, len(writers_of(config, layer))) for layer in (() if space is None else space.layers)]


def slot_bytes(config: Any, item: int) -> int:
    """That all slots of one text take, their contents in numbers of `item` bytes; the strengths have four."""
    return sum(organ.num_entries(writers) * (organ.entry_width * item + 4) for organ, writers in slots_of(config))


def slot_scratch(config: Any, tokens: int) -> int:
    """Bytes at work while one organ reads a piece of `tokens` tokens: what is offered, and slots segment by segment."""
    most = 0
    for organ, writers in slots_of(config):
        segments = tokens // organ.segment + 2
        offered = 3 * writers * segments * organ.segment * (organ.entry_width + int(config.hidden_size))
        found = segments * organ.num_slots * 3 * organ.entry_width
        weights = 3 * organ.num_heads * segments * organ.segment * (organ.num_slots + 1)
        most = max(most, 4 * (offered + found + weights))
    return most


@dataclass(frozen=True, kw_only=True)
class FleetingConfig(Organ):
    """Fleeting attention: the last tokens are remembered as they are, older ones fade (fleeting.py)."""

    layers: Sequence[int] | None = None
    """Counted from 0; None: all."""
    intact: int = 5
    """Tokens, the newest itself among them, that nothing is taken from."""
    power: float = 1.0
    """A token that is n tokens older than the last of those weighs (1 + n) ** -power of what it would."""

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", _layers("fleeting", self.layers))
        require_whole("fleeting", intact=self.intact)
        require_positive("fleeting", power=self.power)
