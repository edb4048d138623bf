"""Bank: U units of equal shape, side by side; a router wakes a few per token.

    y_t = sum over awake u of g_tu * (down_u act(up_u x_t + up_bias_u) + down_bias_u)

The verbs `add_units`, `split_unit`, `remove_units` change how many there are and say which rows moved where, so that
whatever runs along the unit axis (optimiser moments, averages, a router's rows) can follow. They act between steps.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from pragnosia import kernels
from pragnosia.kernels.activations import ACTIVATIONS, Activation

NEWBORN = -1


@dataclass(frozen=True)
class Moved:
    """What a structural change did: where each unit came from, and which parameter took which one's place."""

    source: Int[Tensor, " U_new"]
    """For each unit now, the unit it was before; NEWBORN (-1) if it was not."""
    replaced: dict[str, tuple[nn.Parameter, nn.Parameter]]
    """Name -> (parameter before, parameter now)."""

    def follow(self, rows: Float[Tensor, "U_old ..."], newborn: float = 0.0) -> Float[Tensor, "U_new ..."]:
        """Any tensor along the old unit axis, along the new one; rows of newborn units are filled."""
        moved = rows[self.source.clamp_min(0).to(rows.device)]
        moved[(self.source == NEWBORN).to(rows.device)] = newborn
        return moved

    def carry(self, optimizer: Optimizer) -> None:
        """Put the new parameters in the optimiser's groups, with state that followed; newborn rows start fresh."""
        successor = {id(old): (old, new) for old, new in self.replaced.values()}
        for group in optimizer.param_groups:
            group["params"] = [successor[id(p)][1] if id(p) in successor else p for p in group["params"]]
        for old, new in successor.values():
            if old in optimizer.state:
                state = optimizer.state.pop(old)
                optimizer.state[new] = {
                    key: self.follow(value) if torch.is_tensor(value) and value.shape == old.shape else value
                    for key, value in state.items()
                }


class Units(nn.Module, ABC):
    """Parameters that all run along one axis of units, and the verbs that change how many there are."""

    @property
    def num_units(self) -> int:
        """U."""
        return next(self.parameters(recurse=False)).shape[0]

    def add_units(self, count: int, initialise: Callable[[str, Tensor], None]) -> Moved:
        """Append `count` units; `initialise(name, rows)` fills the new rows in place.

        Keeps the function: nothing routes to the newborn until a router does.
        """
        if count < 1:
            raise ValueError(f"cannot add {count} units; give at least 1")
        moved = self._take([*range(self.num_units), *[NEWBORN] * count])
        for name, (_, new) in moved.replaced.items():
            initialise(name, new.data[-count:])
        return moved

    def split_unit(self, unit: int) -> Moved:
        """Append an exact twin of `unit`.

        Keeps the function for every routing in which the twins' strengths sum to what the unit's was.
        """
        self._check([unit])
        return self._take([*range(self.num_units), unit])

    def remove_units(self, units: Iterable[int]) -> Moved:
        """Remove units; the rows close up, and memory shrinks.

        Keeps the function for every token that woke none of them.
        """
        gone = set(units)
        self._check(gone)
        kept = [unit for unit in range(self.num_units) if unit not in gone]
        if not kept:
            raise ValueError(f"cannot remove all {self.num_units} units of a bank; keep at least 1")
        return self._take(kept)

    def _check(self, units: Iterable[int]) -> None:
        for unit in units:
            if not 0 <= unit < self.num_units:
                raise ValueError(f"there is no unit {unit}; the bank holds units 0 to {self.num_units - 1}")

    @torch.no_grad()
    def _take(self, source: list[int]) -> Moved:
        """Rebuild every parameter from the given old rows."""
        moved = Moved(torch.tensor(source), {})
        for name, old in list(self.named_parameters(recurse=False)):
            new = nn.Parameter(moved.follow(old.data), requires_grad=old.requires_grad)
            setattr(self, name, new)
            moved.replaced[name] = (old, new)
        return moved


@final
class Bank(Units):
    """The units' weights and their sum over who is awake."""

    def __init__(
        self,
        num_units: int,
        width: int,
        unit_width: int,
        *,
        activation: str,
        bias: bool = False,
        num_speaking: int | None = None,
    ) -> None:
        super().__init__()
        parts = ACTIVATIONS[activation].num_parts
        self.activation, self.num_speaking = activation, num_speaking
        self.up = nn.Parameter(torch.empty(num_units, parts * unit_width, width))
        self.down = nn.Parameter(torch.empty(num_units, width, unit_width))
        self.up_bias = nn.Parameter(torch.zeros(num_units, parts * unit_width)) if bias else None
        self.down_bias = nn.Parameter(torch.zeros(num_units, width)) if bias else None

    def forward(
        self, x: Float[Tensor, "T D"], units: Int[Tensor, "T A"], strengths: Float[Tensor, "T A"]
    ) -> Float[Tensor, "T D"]:
        """The awake units' weighted sum; a slot of -1 wakes nobody."""
        return kernels.bank(
            *(x, units, strengths, self.up, self.down, self.up_bias, self.down_bias),
            activation=self.activation,
            num_speaking=self.num_speaking,
        )

    @property
    def neurons(self) -> Activation:
        """What a unit does to its hidden values."""
        return ACTIVATIONS[self.activation].limited(self.num_speaking)


@final
class Table(Units):
    """Rows of memory: a unit is one row, which whoever recalls it reads as it stands.

    y_t = sum over recalled u of g_tu * row_u

    Its gradient is sparse: the rows that were recalled, and no others.
    """

    def __init__(self, num_units: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(num_units, width))

    def forward(self, units: Int[Tensor, "T A"], strengths: Float[Tensor, "T A"]) -> Float[Tensor, "T D"]:
        """The recalled rows' weighted sum."""
        return kernels.read(self.rows, units, strengths)
