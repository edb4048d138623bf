"""Weight rules: how one of our tensors is made of theirs, and theirs of ours, without changing a bit.

    Joined    ours = theirs one after the other: a plain rename (one name), gate and up rows (two names), and
              with `num_units` the same for every unit in turn: gate 0, up 0, gate 1, up 1, …
    PerUnit   ours[u] = theirs[u] transposed, its interleaved gate and up columns put side by side (gpt-oss)

Our tensors have the units U in front and (out, in) behind: up (U, 2F, D), gate rows first; down (U, D, F).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from pragnosia.checkpoints.source import Index, Shape, TensorSource, pieces


@dataclass(frozen=True)
class Rule(ABC):
    """One tensor of ours, and the tensors of theirs it corresponds to."""

    ours: str

    @abstractmethod
    def their_shapes(self, shape: Shape) -> dict[str, Shape]:
        """Their tensors, in order, each with its shape when ours has `shape`."""

    @abstractmethod
    def to_ours(self, theirs: TensorSource) -> Iterator[Tensor]:
        """Our tensor, in row-major pieces."""

    @abstractmethod
    def to_theirs(self, number: int, ours: TensorSource) -> Iterator[Tensor]:
        """The `number`th of their tensors, in row-major pieces."""


@final
@dataclass(frozen=True)
class Joined(Rule):
    """Ours is theirs laid end to end along the rows; with `num_units`, unit by unit (`{unit}` in the names)."""

    parts: tuple[str, ...]
    num_units: int | None = None

    @property
    def _names(self) -> list[str]:
        if self.num_units is None:
            return list(self.parts)
        return [part.format(unit=unit) for unit in range(self.num_units) for part in self.parts]

    def their_shapes(self, shape: Shape) -> dict[str, Shape]:
        """Every part has an equal share of the rows."""
        if not shape:  # a single number is renamed
            return dict.fromkeys(self._names, shape)
        rows, *rest = shape if self.num_units is None else shape[1:]
        return dict.fromkeys(self._names, (rows // len(self.parts), *rest))

    def to_ours(self, theirs: TensorSource) -> Iterator[Tensor]:
        """Their tensors, one after the other."""
        for name in self._names:
            yield from pieces(theirs, name)

    def to_theirs(self, number: int, ours: TensorSource) -> Iterator[Tensor]:
        """The rows of ours that it gave."""
        unit, part = divmod(number, len(self.parts))
        fixed: Index = () if self.num_units is None else (unit,)
        rows = ours.shape(self.ours)[len(fixed)] // len(self.parts)
        yield from pieces(ours, self.ours, (*fixed, slice(part * rows, (part + 1) * rows)))


@final
@dataclass(frozen=True)
class PerUnit(Rule):
    """Ours is theirs, each unit turned: (in, out) to (out, in), gate and up from interleaved to side by side."""

    theirs: str
    transposed: bool = False
    interleaved: bool = False

    def their_shapes(self, shape: Shape) -> dict[str, Shape]:
        """Ours, with the last two axes swapped if theirs is transposed."""
        return {self.theirs: (shape[0], shape[2], shape[1]) if self.transposed else shape}

    def to_ours(self, theirs: TensorSource) -> Iterator[Tensor]:
        """One unit after the other."""
        for unit in range(theirs.shape(self.theirs)[0]):
            rows = theirs.read(self.theirs, (unit,))
            rows = rows.T if self.transposed else rows
            yield torch.cat((rows[0::2], rows[1::2])) if self.interleaved else rows

    def to_theirs(self, number: int, ours: TensorSource) -> Iterator[Tensor]:
        """One unit after the other, turned back."""
        for unit in range(ours.shape(self.ours)[0]):
            rows = ours.read(self.ours, (unit,))
            if self.interleaved:
                rows = torch.stack(rows.chunk(2), dim=1).flatten(0, 1)
            yield rows.T if self.transposed else rows


def same(ours: str, theirs: str) -> Joined:
    """A plain rename."""
    return Joined(ours, (theirs,))
