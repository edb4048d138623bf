"""A bank on an accelerator: its units come through host memory into slots that all layers share (device_slots.py).

    y[t] = sum_a strengths[t, a] (down[u] act(up[u] x[t] + up_bias[u]) + down_bias[u])      u = units[t, a]

Unit by unit, each read once, those that are there before those that come; every product is written to its own place
(t, a), so that who comes late changes no sum. On the CPU, which stands in for an accelerator in tests, the numbers are
those of `kernels.bank(backend="cpu")`, bit for bit. Packed units are read packed by Triton programs, all that are there
in two launches (kernels/triton_packed.py); without triton a few at a time are unpacked by torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from pragnosia.errors import CheckpointError
from pragnosia.inference.device_units import UnitsOnDevice
from pragnosia.kernels import triton_packed
from pragnosia.kernels.formats import MANY_AT_ONCE, unpack
from pragnosia.kernels.slots import sort_slots
from pragnosia.tuning.units import through_units

if TYPE_CHECKING:
    from pragnosia.inference.device_slots import DeviceSlots, Placed
    from pragnosia.kernels.pool import PooledBank
    from pragnosia.kernels.slots import Slots

TOGETHER = 16
"""Packed units that one launch takes; of those that come late, so many are waited for."""


@final
class AcceleratorBank(nn.Module):
    """Stands where a `Bank` stands; its units lie on disk, in host memory and on the device, and stay as they are."""

    up_bias: Tensor | None
    down_bias: Tensor | None

    def __init__(self, bank: PooledBank, slots: DeviceSlots, up_bias: Tensor | None, down_bias: Tensor | None) -> None:
        super().__init__()
        self.pooled, self.slots, self.activation, self.num_units = bank, slots, bank.activation.name, bank.num_units
        self.units = UnitsOnDevice(bank, slots)
        self.before: tuple[()] = ()
        self.after: tuple[()] = ()
        self.woken: list[int] = []
        self.register_buffer("up_bias", up_bias)
        self.register_buffer("down_bias", down_bias)
        up_row, down_row = bank.row_bytes
        self._rows = bank.activation.num_parts * bank.unit_width
        self._down_rows, self._down_depth = bank.format.down_shape(bank.width, bank.unit_width)
        self._up_bytes, self._end = self._rows * up_row, self._rows * up_row + self._down_rows * down_row
        weights = (self._rows + bank.unit_width) * bank.width
        # packed units are unpacked together, up to so many; of plain ones a view is enough
        self._at_once = 1 if bank.format.plain_dtype else max(1, MANY_AT_ONCE // weights)
        self._packed = triton_packed.PackedUnits(
            entry=bank.format, width=bank.width, unit_width=bank.unit_width, activation=bank.activation
        )

    @torch.no_grad()
    def _sum(self, x: Tensor, units: Tensor, strengths: Tensor) -> Tensor:
        sorted_ = sort_slots(units.cpu(), self.num_units)  # the host has to know who wakes
        if self.pooled.layer == 0:
            self.slots.tick()
        out = x.new_zeros(units.numel(), self.pooled.width)
        work = self._sum_packed if self._packed.can(x) else self._sum_plain
        work(x, sorted_, strengths.reshape(-1), out)
        return out.view(*units.shape, -1).sum(1)

    def _sum_packed(self, x: Tensor, sorted_: Slots, flat: Tensor, out: Tensor) -> None:
        """Every slot's product to its place in `out` (T*A, D), from records as they are."""
        order, tokens = sorted_.order.to(x.device), sorted_.tokens.to(x.device)
        spans = {unit: (start, stop) for unit, start, stop in sorted_.groups}
        most = max((stop - start for start, stop in spans.values()), default=0)
        records, biases = self.slots.records, {"up": self.up_bias, "down": self.down_bias}
        with closing(self.slots.turns(self.pooled.layer, spans, TOGETHER)) as groups:
            for group in groups:
                placed = [(unit, slot * records.shape[1], *spans[unit]) for unit, slot in group]
                triton_packed.units(x, tokens, order, placed, records, self._packed, flat, biases, out, most)

    def _sum_plain(self, x: Tensor, sorted_: Slots, flat: Tensor, out: Tensor) -> None:
        """The same unit by unit, by torch."""
        order, tokens = sorted_.order.to(x.device), sorted_.tokens.to(x.device)
        spans = {unit: slice(start, stop) for unit, start, stop in sorted_.groups}
        with closing(self.slots.turns(self.pooled.layer, spans, self._at_once)) as groups:
            for group in groups:
                up, down = self._matrices(group, x.dtype)
                for number, (unit, _) in enumerate(group):
                    span = spans[unit]
                    y = self._unit(unit, x.index_select(0, tokens[span]), up[number], down[number])
                    out[order[span]] = y.mul_(flat.index_select(0, order[span]).to(x.dtype)[:, None])

    def forward(self, x: Tensor, units: Tensor, strengths: Tensor) -> Tensor:
        """As `Bank.forward`; slopes reach x and the strengths. Raises CheckpointError where a unit cannot be read."""
        if torch.is_grad_enabled() and (x.requires_grad or strengths.requires_grad):
            return through_units(self, x, units, strengths, ())
        try:
            return self._sum(x, units, strengths)
        except OSError as error:
            raise CheckpointError(f"{error}") from error

    def row(self, unit: int) -> None:
        """Nothing of a unit learns."""

    def unit(self, number: int, x: Tensor, matrices: tuple[Tensor, Tensor], learning: Sequence[Tensor]) -> Tensor:
        """One unit's answer to its tokens, (N, D) -> (N, D), for slopes to pass through."""
        return self._unit(number, x, *matrices)

    def _unit(self, unit: int, rows: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """One unit's rows (N, D) -> (N, D)."""
        hidden = rows @ up.to(rows.dtype).t()
        if self.up_bias is not None:
            hidden += self.up_bias[unit].to(rows.dtype)
        y = self.pooled.activation(hidden) @ down.to(rows.dtype).t()
        if self.down_bias is not None:
            y += self.down_bias[unit].to(rows.dtype)
        return y

    def _matrices(self, group: Sequence[Placed], dtype: torch.dtype) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Up (R, D) and down (D, F) of each: views of plain numbers, else unpacked together."""
        entry, depths = self.pooled.format, (self.pooled.width, self._down_depth)
        records = self.slots.records
        packed = records[group[0][1]][None] if len(group) == 1 else records[[slot for _, slot in group]]
        parts = (
            packed[:, : self._up_bytes].unflatten(1, (self._rows, -1)),
            packed[:, self._up_bytes : self._end].unflatten(1, (self._down_rows, -1)),
        )
        if entry.plain_dtype is not None:
            up, down = (part.view(entry.plain_dtype) for part in parts)
        else:
            up, down = (unpack(part, depth, entry.name, dtype) for part, depth in zip(parts, depths, strict=True))
            down = down.transpose(1, 2) if entry.is_turned(self.pooled.unit_width) else down
        return up, down
