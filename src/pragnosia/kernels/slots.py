"""Who works for whom: the (token, slot) pairs of a routing, sorted by unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Slots:
    """N woken slots in the order of their units; `groups` are (unit, start, stop) of units with work."""

    order: Tensor  # (N,) which flat slot t*A + a stands here
    tokens: Tensor  # (N,) its token t
    units: Tensor  # (N,) its unit
    groups: list[tuple[int, int, int]]
    shape: tuple[int, int]  # (T, A)

    def sum_over_slots(self, rows: Tensor) -> Tensor:
        """(N, D) sorted by unit -> (T, D), each token's slots added in slot order."""
        num_tokens, num_slots = self.shape
        back = torch.full((num_tokens * num_slots,), rows.shape[0], dtype=torch.long, device=rows.device)
        back[self.order] = torch.arange(rows.shape[0], device=rows.device)
        if rows.shape[0] < num_tokens * num_slots:
            rows = torch.cat((rows, rows.new_zeros(1, rows.shape[1])))  # empty slots read zeros
        return rows.index_select(0, back).view(num_tokens, num_slots, rows.shape[1]).sum(1)


def sort_slots(units: Tensor, num_units: int) -> Slots:
    """Stable order of `units` (T, A); -1 slots drop out. Raises ValueError on a unit that is not there."""
    flat = units.reshape(-1)
    sorted_units, order = torch.sort(flat, stable=True)
    if flat.numel() and (sorted_units[0] < -1 or sorted_units[-1] >= num_units):
        raise ValueError(
            f"units reach {int(sorted_units[0])} to {int(sorted_units[-1])}, expected -1 (nobody) to {num_units - 1}"
        )
    counts: list[int] = torch.bincount(flat + 1, minlength=num_units + 1).tolist()
    idle = counts[0]
    sorted_units, order = sorted_units[idle:], order[idle:]
    groups, start = [], 0
    for unit, count in enumerate(counts[1:]):
        if count:
            groups.append((unit, start, start + count))
        start += count
    num_slots = units.shape[1]
    tokens = torch.div(order, max(num_slots, 1), rounding_mode="floor")
    return Slots(order=order, tokens=tokens, units=sorted_units, groups=groups, shape=(units.shape[0], num_slots))
