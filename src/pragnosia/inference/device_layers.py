"""Layers of a dense model on an accelerator: as many as fit stay, the others pass through two slots of it.

A layer is copied while the one before computes: the host runs ahead of the device, and the copy has a stream of its
own (device_slots.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import torch

from pragnosia.inference.device_slots import Ferry, slot_bytes
from pragnosia.inference.layers import PASSING, LayersOnDisk

if TYPE_CHECKING:
    from torch import Tensor

    from pragnosia.inference.shelf import Stored
    from pragnosia.kernels.pool import UnitPool


@final
class LayersOnDevice:
    """Stands where `LayersOnDisk` stands, `slots` >= 2; what does not stay on the device is kept by the host."""

    def __init__(self, pool: UnitPool, layers: Sequence[Sequence[Stored]], slots: int, device: torch.device) -> None:
        self.pool = pool
        self.kept = len(layers) if slots >= len(layers) else slots - PASSING
        self.records = torch.empty(slots, slot_bytes(pool.record_bytes), dtype=torch.uint8, device=device)
        self.ferry = Ferry(device, pool.record_bytes)
        self.host = LayersOnDisk(pool, layers, first=self.kept)
        self._holder, self._used = [-1] * slots, [None] * slots
        for number in range(self.kept):
            self.fetch(number)

    def fetch(self, number: int) -> Tensor:
        """A layer's record on the device. Raises CheckpointError where it cannot be read."""
        slot = self._slot(number)
        if self._holder[slot] != number:
            record = self.host.fetch(number)
            self._holder[slot] = -1
            try:
                self.ferry.carry(record, self.records[slot], self._used[slot])
            finally:
                self.host.release(number)
            self._holder[slot] = number
        return self.records[slot]

    def release(self, number: int) -> None:
        """Once what computes now is done, another may take its slot."""
        used: list[Any] = self._used
        used[self._slot(number)] = self.ferry.now()

    def _slot(self, number: int) -> int:
        return number if number < self.kept else self.kept + (number - self.kept) % PASSING
