"""Units on an accelerator as something that learns, or lets slopes through, goes by them: in order, there and back.

A unit's matrices are on the device for its turn; so are what it says, its slopes, and the adapters that learn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar, final

from pragnosia.errors import CheckpointError
from pragnosia.tuning.units import ASK_AHEAD, Work

if TYPE_CHECKING:
    from pragnosia.inference.device_slots import DeviceSlots
    from pragnosia.kernels.pool import PooledBank

T = TypeVar("T")


@final
class UnitsOnDevice:
    """Of a bank whose units share slots on a device; `FrozenUnits` of tuning/units.py."""

    def __init__(self, bank: PooledBank, slots: DeviceSlots) -> None:
        self.bank, self.slots, self.activation = bank, slots, bank.activation
        self.num_units, self.width, self.unit_width = bank.num_units, bank.width, bank.unit_width

    def each(self, units: Sequence[int], work: Work[T]) -> Iterator[tuple[int, T]]:
        """One after the other: the device computes what it was given while the next is on its way."""
        self.slots.tick()
        try:
            with closing(self.slots.in_order(self.bank.layer, units)) as placed:
                for unit, slot in placed:
                    yield unit, work(unit, *self.bank.matrices(self.slots.records[slot]))
        except OSError as error:
            raise CheckpointError(str(error)) from error

    def ask(self, units: Sequence[int]) -> None:
        """Of those that the device lacks, as many into host memory as leave most of its pool alone."""
        pool, layer = self.bank.pool, self.bank.layer
        pool.ask(layer, self.slots.missing(layer, units)[: min(ASK_AHEAD, pool.slots // 4)])
