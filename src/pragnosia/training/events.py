"""Structural events: what changed in a model while it was trained, when and why; they stand in the run's log.

A record of the log has `events` where any happened since the record before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pragnosia.training.log import Record
from pragnosia.units import format_count


@dataclass(frozen=True, kw_only=True)
class Event:
    """One change between two steps."""

    step: int
    """Steps done before it."""
    what: str
    """`stage`, or the verb: `deepen`, `add_units`, …"""
    reason: str
    detail: str
    """What is now otherwise, in a few words."""
    births: int = 0
    """Units that were not there before, of all layers."""
    deaths: int = 0
    parameters: tuple[int, int]
    """Before and after."""
    jump: float | None = None
    """Of the loss on the rows learned last, relative, measured right before and right after the structure changed."""

    def write(self) -> dict[str, Any]:
        """For a line of the log."""
        return asdict(self)

    @classmethod
    def read(cls, values: Record) -> Event:
        """From a line of the log."""
        return cls(**{**values, "parameters": tuple(values["parameters"])})

    @property
    def told(self) -> str:
        """In one line, for people."""
        before, after = self.parameters
        size = f"; {format_count(before)} -> {format_count(after)} parameters" if before != after else ""
        jump = "" if self.jump is None else f"; loss {100 * self.jump:+.3f} %"
        return f"{self.what}: {self.detail} ({self.reason}){size}{jump}"


def events_of(records: Iterable[Record]) -> list[Event]:
    """All events of a log, in order."""
    return [Event.read(values) for record in records for values in record.get("events", ())]


def balance(events: Sequence[Event]) -> tuple[int, int]:
    """Births and deaths together."""
    return sum(event.births for event in events), sum(event.deaths for event in events)
