"""Units of their own: a bank of which a run of units learns in full, while the others stay as they are.

What learns is in memory in fp32 and is cast to what x is in; nothing of it is asked of the stream. Its slopes take the
same way through the units as those of adapters (units.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, final

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia.model.bank import Bank
from pragnosia.tuning.side_by_side import side_by_side
from pragnosia.tuning.units import FrozenUnits, UnitsInMemory, UnitsOnDisk, Work, through_units

T = TypeVar("T")


@final
class OwnUnits:
    """Units `first` to `first + G - 1`: up (G, R, D), down (G, D, F), and their biases where there are any."""

    def __init__(self, first: int, parts: Mapping[str, nn.Parameter]) -> None:
        self.first, self.names, self.tensors = first, tuple(parts), tuple(parts.values())
        self.up, self.down = parts["up"], parts["down"]

    def row(self, unit: int) -> int | None:
        """Where a unit's slices are; None of a unit that is not among them."""
        row = unit - self.first
        return row if 0 <= row < len(self.up) else None


@final
class OwnBeside:
    """Frozen units of which some are here to learn meanwhile."""

    def __init__(self, frozen: FrozenUnits) -> None:
        self.frozen, self.activation = frozen, frozen.activation
        self.num_units, self.width, self.unit_width = frozen.num_units, frozen.width, frozen.unit_width
        self.own: OwnUnits | None = None

    def each(self, units: Sequence[int], work: Work[T]) -> Iterator[tuple[int, T]]:
        """In order, which goes up or down: what comes before the own ones, then those, then the rest."""
        own, mine = self.own, [at for at, unit in enumerate(units) if self._row(unit) is not None]
        if own is None or not mine:
            yield from self.frozen.each(units, work)
            return
        begin, end = mine[0], mine[-1] + 1
        if begin:
            yield from self.frozen.each(units[:begin], work)
        up, down = own.up.detach(), own.down.detach()
        rows = ((unit, unit - own.first) for unit in units[begin:end])
        yield from side_by_side((unit, partial(work, unit, up[row], down[row])) for unit, row in rows)
        if end < len(units):
            yield from self.frozen.each(units[end:], work)

    def ask(self, units: Sequence[int]) -> None:
        """Of those that are elsewhere."""
        self.frozen.ask([unit for unit in units if self._row(unit) is None])

    def _row(self, unit: int) -> int | None:
        return None if self.own is None else self.own.row(unit)


@final
class TunedBank(nn.Module):
    """Stands where a bank stands. `before` and `after` are the banks of the layers around it, if there are."""

    up_bias: Tensor | None
    down_bias: Tensor | None

    def __init__(self, bank: Any) -> None:
        super().__init__()
        frozen: FrozenUnits = UnitsInMemory(bank) if isinstance(bank, Bank) else UnitsOnDisk(bank.bank)
        self.units = OwnBeside(frozen)
        self.num_units, self.activation = frozen.num_units, frozen.activation.name
        for name in ("up_bias", "down_bias"):
            bias = getattr(bank, name)
            self.register_buffer(name, None if bias is None else bias.detach())
        self.before: tuple[TunedBank, ...] = ()
        self.after: tuple[TunedBank, ...] = ()
        self.woken: list[int] = []

    def forward(
        self, x: Float[Tensor, "T D"], units: Int[Tensor, "T A"], strengths: Float[Tensor, "T A"]
    ) -> Float[Tensor, "T D"]:
        """As `Bank.forward`; slopes reach x, the strengths and the own units."""
        own = self.units.own
        return through_units(self, x, units, strengths, () if own is None else own.tensors)

    def row(self, unit: int) -> int | None:
        """Where what learns of a unit stands; None of a unit that is frozen."""
        return None if self.units.own is None else self.units.own.row(unit)

    def unit(self, number: int, x: Tensor, matrices: tuple[Tensor, Tensor], own: Sequence[Tensor]) -> Tensor:
        """One unit's answer to its tokens, (N, D) -> (N, D); `own` is what learns of it."""
        parts: dict[str, Tensor | None] = {"up": matrices[0], "down": matrices[1]}
        parts |= {name: None if bias is None else bias[number] for name, bias in self.biases.items()}
        if own:
            assert self.units.own is not None
            parts |= dict(zip(self.units.own.names, own, strict=True))
        cast = {name: None if part is None else part.to(x.dtype) for name, part in parts.items()}
        hidden = self.units.activation(F.linear(x, cast["up"], cast["up_bias"]))  # type: ignore[arg-type]
        return F.linear(hidden, cast["down"], cast["down_bias"])  # type: ignore[arg-type]

    @property
    def biases(self) -> dict[str, Tensor | None]:
        """Of all units, by name."""
        return {"up_bias": self.up_bias, "down_bias": self.down_bias}
