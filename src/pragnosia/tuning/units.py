"""Units with adapters: a bank that is frozen, and what each of its units learns.

    h = act(up x + s up_b up_a x + up_bias)      y = down h + s down_b down_a h + down_bias      s = alpha / rank

The frozen matrices pass by one unit at a time, from memory or from disk, once forward and once backward; the way back
goes through them in the opposite order, so that what was read last is used first. Between the two only x is kept: a
unit's hidden values are computed again beside its slopes. Hu et al. 2022, arXiv 2106.09685, eq. 3, unit by unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pragnosia.errors import CheckpointError
from pragnosia.kernels.activations import Activation
from pragnosia.kernels.pool import PooledBank
from pragnosia.model.bank import Bank
from pragnosia.tuning.side_by_side import side_by_side

T = TypeVar("T")
Work = Callable[[int, Tensor, Tensor], T]
ADAPTERS = ("up_a", "up_b", "down_a", "down_b")
ROWS = 16  # that a unit's tokens are filled up to
ASK_AHEAD = 32  # units of the next bank that are asked for while attention computes


class FrozenUnits(Protocol):
    """Where a bank's matrices come from."""

    num_units: int
    width: int
    unit_width: int
    activation: Activation

    def each(self, units: Sequence[int], work: Work[T]) -> Iterator[tuple[int, T]]:
        """What `work(unit, up, down)` gives for each, in order; several are at work side by side.

        Raises CheckpointError where a unit cannot be read.
        """

    def ask(self, units: Sequence[int]) -> None:
        """These will be wanted soon."""


@final
class UnitsInMemory:
    """Of a bank that is there."""

    def __init__(self, bank: Bank) -> None:
        self.bank, self.activation = bank, bank.neurons
        self.num_units, self.width, self.unit_width = bank.down.shape

    def each(self, units: Sequence[int], work: Work[T]) -> Iterator[tuple[int, T]]:
        """On views."""
        up, down = self.bank.up.detach(), self.bank.down.detach()
        return side_by_side((unit, partial(work, unit, up[unit], down[unit])) for unit in units)

    def ask(self, units: Sequence[int]) -> None:
        """They are here."""


@final
class UnitsOnDisk:
    """Of a bank whose units share a pool."""

    def __init__(self, bank: PooledBank) -> None:
        self.bank, self.activation = bank, bank.activation
        self.num_units, self.width, self.unit_width = bank.num_units, bank.width, bank.unit_width

    def each(self, units: Sequence[int], work: Work[T]) -> Iterator[tuple[int, T]]:
        """Read as their turn comes near."""
        pool = self.bank.pool
        pool.tick()
        # whoever's result has been taken is done with its record
        turns = pool.turns(self.bank.layer, units, stay=torch.get_num_threads())

        def on(unit: int, record: Tensor) -> T:
            return work(unit, *self.bank.matrices(record))

        try:
            yield from side_by_side((unit, partial(on, unit, record)) for unit, record in turns)
        except OSError as error:
            raise CheckpointError(str(error)) from error
        finally:
            turns.close()

    def ask(self, units: Sequence[int]) -> None:
        """As many as leave most of the pool alone."""
        self.bank.pool.ask(self.bank.layer, units[: min(ASK_AHEAD, self.bank.pool.slots // 4)])


@final
class LoraBank(nn.Module):
    """Stands where a bank stands. `before` and `after` are the banks of the layers around it, if there are."""

    up_bias: Tensor | None
    down_bias: Tensor | None

    def __init__(
        self, units: FrozenUnits, up_bias: Tensor | None, down_bias: Tensor | None, rank: int, scale: float
    ) -> None:
        super().__init__()
        self.units, self.scale = units, scale
        self.num_units, self.activation = units.num_units, units.activation.name
        hidden = units.activation.num_parts * units.unit_width
        self.up_a = nn.Parameter(torch.empty(units.num_units, rank, units.width))
        self.up_b = nn.Parameter(torch.zeros(units.num_units, hidden, rank))
        self.down_a = nn.Parameter(torch.empty(units.num_units, rank, units.unit_width))
        self.down_b = nn.Parameter(torch.zeros(units.num_units, units.width, rank))
        for matrix in (self.up_a, self.down_a):
            nn.init.uniform_(matrix, -(matrix.shape[-1] ** -0.5), matrix.shape[-1] ** -0.5)
        self.register_buffer("up_bias", up_bias)
        self.register_buffer("down_bias", down_bias)
        self.before: tuple[LoraBank, ...] = ()
        self.after: tuple[LoraBank, ...] = ()
        self.woken: list[int] = []
        """By the last batch: a guess at what the next one will want, and no more."""

    def forward(
        self, x: Float[Tensor, "T D"], units: Int[Tensor, "T A"], strengths: Float[Tensor, "T A"]
    ) -> Float[Tensor, "T D"]:
        """As `Bank.forward`; slopes reach x, the strengths and the adapters."""
        return through_units(self, x, units, strengths, [getattr(self, name) for name in ADAPTERS])

    def row(self, unit: int) -> int:
        """Every unit has adapters."""
        return unit

    def unit(self, number: int, x: Tensor, matrices: tuple[Tensor, Tensor], low: Sequence[Tensor]) -> Tensor:
        """One unit's answer to its tokens, (N, D) -> (N, D)."""
        up, down = (matrix.to(x.dtype) for matrix in matrices)
        up_bias, down_bias = (None if b is None else b[number].to(x.dtype) for b in (self.up_bias, self.down_bias))
        hidden = F.linear(x, up, up_bias) + low_rank(x, low[0], low[1], self.scale)
        hidden = self.units.activation(hidden)
        return F.linear(hidden, down, down_bias) + low_rank(hidden, low[2], low[3], self.scale)


def low_rank(x: Float[Tensor, "... D"], a: Float[Tensor, "r D"], b: Float[Tensor, "O r"], scale: float) -> Tensor:
    """s B A x, computed in the adapter's precision; in x's dtype."""
    return (F.linear(F.linear(x.to(a.dtype), a), b) * scale).to(x.dtype)


class _Slots:
    """The slots (t, a) of a routing, by unit."""

    def __init__(self, units: Int[Tensor, "T A"], num_units: int) -> None:
        flat = units.flatten()
        self.order, self.awake = flat.argsort(stable=True), units.shape[1]
        self.bounds = torch.bincount(flat + 1, minlength=num_units + 1).cumsum(0).tolist()  # [0]: those of nobody
        self.woken = [unit for unit in range(num_units) if self.bounds[unit] < self.bounds[unit + 1]]

    def of(self, unit: int) -> tuple[Tensor, Tensor]:
        """A unit's slots, and their tokens."""
        slots = self.order[self.bounds[unit] : self.bounds[unit + 1]]
        return slots, slots // self.awake


class UnitByUnit(Protocol):
    """A bank that is gone through unit by unit, and something of which learns."""

    num_units: int
    woken: list[int]

    @property
    def units(self) -> FrozenUnits:
        """Its matrices."""

    @property
    def after(self) -> Sequence[UnitByUnit]:
        """The bank of the next sparse layer, if there is one."""

    @property
    def before(self) -> Sequence[UnitByUnit]:
        """That of the one below."""

    def row(self, unit: int) -> int | None:
        """Of everything that learns, the slice that is this unit's; None where nothing of it learns."""

    def unit(self, number: int, x: Tensor, matrices: tuple[Tensor, Tensor], learning: Sequence[Tensor], /) -> Tensor:
        """One unit's answer to its tokens, (N, D) -> (N, D), given its slices of what learns."""


def through_units(
    bank: UnitByUnit, x: Tensor, units: Tensor, strengths: Tensor, learning: Sequence[Tensor]
) -> Float[Tensor, "T D"]:
    """The awake units' weighted sum; slopes reach x, the strengths and what learns."""
    result: Tensor = _ThroughUnits.apply(x, units, strengths, *learning, bank)  # type: ignore[no-untyped-call]
    return result


def _slices(bank: UnitByUnit, unit: int, learning: Sequence[Tensor]) -> list[Tensor]:
    row = bank.row(unit)
    return [] if row is None else [part[row] for part in learning]


class _ThroughUnits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, units: Tensor, strengths: Tensor, *rest: Any) -> Tensor:
        *learning, bank = rest
        slots, share = _Slots(units, bank.num_units), strengths.float().flatten()

        @torch.no_grad()
        def work(unit: int, up: Tensor, down: Tensor) -> Tensor:
            mine, tokens = slots.of(unit)
            said = bank.unit(unit, padded(x[tokens]), (up, down), _slices(bank, unit, learning))
            weighted: Tensor = said[: len(mine)].float() * share[mine, None]
            return weighted

        out = torch.zeros_like(x, dtype=torch.float32)
        for unit, said in bank.units.each(slots.woken, work):
            out.index_add_(0, slots.of(unit)[1], said)
        bank.woken = slots.woken
        for following in bank.after:
            following.units.ask(following.woken)
        ctx.save_for_backward(x, strengths, *learning)
        ctx.bank, ctx.slots = bank, slots
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, strengths, *learning = ctx.saved_tensors
        bank, slots, share = ctx.bank, ctx.slots, strengths.float().flatten()
        grad_x, grad_share = torch.zeros_like(x, dtype=torch.float32), torch.zeros_like(share)
        slopes = [torch.zeros_like(part) for part in learning]

        def work(unit: int, up: Tensor, down: Tensor) -> Tensor:
            """A unit's slots and slices are its own; the slope of x is not."""
            mine, tokens = slots.of(unit)
            with torch.enable_grad():
                its_own = _slices(bank, unit, learning)
                given = [t.detach().requires_grad_() for t in (padded(x[tokens]), *its_own)]
                said = bank.unit(unit, given[0], (up, down), given[1:])
            wanted = grad[tokens].float()
            grad_share[mine] = (said.detach()[: len(mine)].float() * wanted).sum(-1)
            its = torch.autograd.grad(said, given, padded((wanted * share[mine, None]).to(said.dtype)))
            for total, slope in zip(_slices(bank, unit, slopes), its[1:], strict=True):
                total.copy_(slope)
            slope_x: Tensor = its[0][: len(mine)].float()
            return slope_x

        for unit, slope in bank.units.each(slots.woken[::-1], work):
            grad_x.index_add_(0, slots.of(unit)[1], slope)
        for preceding in bank.before:
            preceding.units.ask(preceding.woken[::-1])
        grad_strengths = grad_share.view_as(strengths).to(strengths.dtype)
        return grad_x.to(x.dtype), None, grad_strengths, *slopes, None


def padded(rows: Float[Tensor, "N D"]) -> Float[Tensor, "M D"]:
    """With rows of zeros to a number that comes often: torch builds and keeps a product for every shape it meets."""
    count = len(rows)
    step = ROWS if count <= 8 * ROWS else 4 * ROWS
    return F.pad(rows, (0, 0, 0, -count % step))
