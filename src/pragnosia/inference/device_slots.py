"""Memory of an accelerator as slots for units: who is there, who has to go, and how the others come.

    disk -> host memory (kernels/pool.py) -> staging buffers -> a slot on the device

The slot given up is worth least, as in the host's pool (source/pool.hpp): worth = uses, each fading by half in
`half_life` tokens. Copies run on a stream of their own, beside what computes; on the CPU, which stands in for an
accelerator in tests, torch's streams do nothing and a copy is done when it is asked for.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from pragnosia.kernels.pool import AHEAD, HALF_LIFE, UnitPool

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT = 256  # bytes: where a slot begins, as allocations on a GPU do
SPARE = 2  # slots for those who come, where units stay for a turn in order: one computes, the next is copied
STAGES = 4  # buffers on their way at once
STAGE_BYTES = 8 << 20  # of one: a record that is longer travels in pieces
Placed = tuple[int, int]
"""A unit and the slot it lies in."""


@dataclass(frozen=True)
class SlotStats:
    """What the slots did since they were made."""

    hits: int
    misses: int
    bytes_copied: int

    @property
    def hit_rate(self) -> float:
        """Share of the units asked for that were on the device."""
        return self.hits / max(self.hits + self.misses, 1)


@final
class Ferry:
    """Carries records from host memory to the device, through staging buffers that the device can read by itself."""

    def __init__(self, device: torch.device, record_bytes: int) -> None:
        self.device, self.bytes_copied = device, 0
        self.backend: Any = torch.get_device_module(device)
        pinned = device.type != "cpu"
        self.lane = self.backend.Stream(device=device) if pinned else self.backend.Stream()
        size = staging_bytes(record_bytes) // STAGES
        self._buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(STAGES)]
        self._arrived = [self.backend.Event() for _ in range(STAGES)]
        self._turn = 0

    def carry(self, record: Tensor, to: Tensor, after: Any) -> None:
        """Copy a record, once the event `after` has come; what computes from now on finds it there.

        `record` may be given up as soon as this returns.
        """
        if after is not None:
            self.lane.wait_event(after)
        for start in range(0, len(record), len(self._buffers[0])):
            piece = record[start : start + len(self._buffers[0])]
            buffer, arrived = self._buffers[self._turn][: len(piece)], self._arrived[self._turn]
            arrived.synchronize()  # what it carried last
            buffer.copy_(piece)
            with self.backend.stream(self.lane):
                to[start : start + len(piece)].copy_(buffer, non_blocking=True)
                arrived.record(self.lane)
            self._turn = (self._turn + 1) % STAGES
        # the lane is in order: where its last piece is, all are
        self.backend.current_stream(self.device).wait_event(self._arrived[self._turn - 1])
        self.bytes_copied += len(record)

    def now(self) -> Any:
        """An event: everything that computes so far is done."""
        event = self.backend.Event()
        event.record(self.backend.current_stream(self.device))
        return event


@final
class DeviceSlots:
    """Slots for units of `layers` banks of `units` each, shared by all; what is not there comes from the host's pool.

    `records` (slots, slot bytes) uint8 is all the memory they take on the device.
    """

    def __init__(
        self,
        pool: UnitPool,
        layers: int,
        units: int,
        slots: int,
        device: torch.device,
        *,
        half_life: float = HALF_LIFE,
    ) -> None:
        self.pool, self.units, self.device, self.half_life = pool, units, device, half_life
        self.records = torch.empty(slots, slot_bytes(pool.record_bytes), dtype=torch.uint8, device=device)
        self.ferry = Ferry(device, pool.record_bytes)
        self._where: dict[int, int] = {}
        self._holder = np.full(slots, -1)
        self._in_turn = np.zeros(slots, dtype=bool)
        self._used: list[Any] = [None] * slots
        """Of each slot, the event after which it may be written."""
        self._worth, self._last = np.zeros(layers * units), np.zeros(layers * units)
        self._clock = self._hits = self._misses = 0

    def tick(self) -> None:
        """Time passes, here and in the host's pool: what was used before is worth less."""
        self._clock += 1
        self.pool.tick()

    def turns(self, layer: int, units: Iterable[int], at_once: int = 1) -> Generator[list[Placed], None, None]:
        """Each unit once with its slot, in groups of at most `at_once` that stay for their turn; who is here is first.

        Raises OSError where a unit cannot be read.
        """
        here, away = self._sorted(layer, units)
        self.pool.ask(layer, away[:AHEAD])  # the disk works while those who are here compute
        at_once = min(at_once, len(self.records))
        try:
            yield from self._in_groups(iter(here.items()), at_once)
            yield from self._in_groups(self._arrivals(layer, away), at_once)
        finally:
            self._in_turn[:] = False

    def in_order(self, layer: int, units: Sequence[int]) -> Generator[Placed, None, None]:
        """Each unit with its slot in the order given, so that a sum over them is the same whoever is here.

        Units that are here stay until their turn, but for a few slots that the others pass through. Raises OSError.
        """
        here, away = self._sorted(layer, units)
        stay = dict(islice(here.items(), max(len(self.records) - SPARE, 0) if away else len(here)))
        late = [unit for unit in units if unit not in stay]
        self.pool.ask(layer, late[:AHEAD])
        self._in_turn[list(stay.values())] = True
        try:
            with closing(self._arrivals(layer, late)) as arrivals:
                for unit in units:
                    placed = (unit, stay[unit]) if unit in stay else next(arrivals)
                    for group in self._turn([placed]):
                        yield group[0]
        finally:
            self._in_turn[:] = False

    def missing(self, layer: int, units: Iterable[int]) -> list[int]:
        """Those that are not here."""
        return [unit for unit in units if layer * self.units + unit not in self._where]

    def stats(self) -> SlotStats:
        """Counts so far."""
        return SlotStats(self._hits, self._misses, self.ferry.bytes_copied)

    def _sorted(self, layer: int, units: Iterable[int]) -> tuple[dict[int, int], list[int]]:
        """Those that are here with their slots, and those that are not; each is used once."""
        here: dict[int, int] = {}
        away: list[int] = []
        for unit in units:
            slot = self._where.get(self._count_use(layer, unit))
            if slot is None:
                away.append(unit)
            else:
                here[unit] = slot
        self._hits, self._misses = self._hits + len(here), self._misses + len(away)
        return here, away

    def _in_groups(self, placed: Iterator[Placed], at_once: int) -> Generator[list[Placed], None, None]:
        group: list[Placed] = []
        for one in placed:
            group.append(one)
            if len(group) == at_once:
                yield from self._turn(group)
                group = []
        if group:
            yield from self._turn(group)

    def _turn(self, group: list[Placed]) -> Generator[list[Placed], None, None]:
        yield group
        done = self.ferry.now()
        for _, slot in group:
            self._used[slot], self._in_turn[slot] = done, False

    def _arrivals(self, layer: int, units: Sequence[int]) -> Generator[Placed, None, None]:
        with closing(self.pool.turns(layer, units)) as records:
            for unit, record in records:
                index = layer * self.units + unit
                slot = self._where.get(index, -1)
                if slot < 0:  # else it was here, had no promise to stay, and stayed
                    slot = self._free_slot()
                    self.ferry.carry(record, self.records[slot], self._used[slot])
                    self._where[index], self._holder[slot] = slot, index
                self._in_turn[slot] = True
                yield unit, slot

    def _count_use(self, layer: int, unit: int) -> int:
        index = layer * self.units + unit
        self._worth[index] = self._worth[index] * 2.0 ** ((self._last[index] - self._clock) / self.half_life) + 1
        self._last[index] = self._clock
        return index

    def _free_slot(self) -> int:
        """A slot that nobody holds, or the one whose holder is worth least; its holder is gone then."""
        worth = self._worth[self._holder] * np.exp2((self._last[self._holder] - self._clock) / self.half_life)
        worth[self._holder < 0] = -1
        worth[self._in_turn] = np.inf
        slot = int(worth.argmin())
        self._where.pop(int(self._holder[slot]), None)
        self._holder[slot] = -1
        return slot


def slot_bytes(record_bytes: int) -> int:
    """From one slot on a device to the next."""
    return -(-record_bytes // ALIGNMENT) * ALIGNMENT


def staging_bytes(record_bytes: int) -> int:
    """Host memory of a ferry's buffers."""
    return STAGES * min(STAGE_BYTES, slot_bytes(record_bytes))
