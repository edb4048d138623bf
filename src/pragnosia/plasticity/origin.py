"""Where a model's numbers came from when its structure changed, so that whatever runs along with them can follow.

    now[i, j] = scale * before[start_0[i], start_1[j]]      or newly drawn where a start is NEWBORN

A number is a newborn if any of its `source`s is: it has no past of its own, even where it began as another's copy.
Moments follow `source`, weights and their averages follow `start`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pragnosia.model.bank import NEWBORN

Amend = Callable[[Tensor, torch.Generator], None]
"""The last word on a tensor, in place: what a twin differs by, what is silent at first."""


@dataclass(frozen=True)
class Axis:
    """What became of one axis of a tensor."""

    dim: int
    source: Int[Tensor, " N_new"]
    """For each index now, the one it was before; NEWBORN (-1) if it was not."""
    start: Int[Tensor, " N_new"]
    """The index it began as a copy of; NEWBORN if it was drawn."""

    @classmethod
    def of(cls, dim: int, source: list[int], start: list[int] | None = None) -> Axis:
        """From plain numbers; without `start` newborns are drawn."""
        return cls(dim, torch.tensor(source), torch.tensor(source if start is None else start))


@dataclass(frozen=True)
class Origin:
    """Where one tensor's numbers came from."""

    name: str | None
    """Of the tensor it was, or began as; None: all of it was drawn."""
    axes: tuple[Axis, ...] = ()
    scale: float = 1.0
    newborn: bool = False
    """Whether all of it is, though it began as another's copy."""
    silent: bool = False
    """Whether what is drawn is drawn as zero."""
    amend: Amend | None = None
    mix: Float[Tensor, "N_new N_old"] | None = None
    """Weights are these means of the old rows, along the first axis, in place of one row each."""

    @property
    def draws(self) -> bool:
        """Whether some of it has to be drawn."""
        return self.name is None or any(bool((axis.start == NEWBORN).any()) for axis in self.axes)

    def weights(self, before: Tensor | None, drawn: Tensor | None, name: str, seed: int) -> Tensor:
        """The tensor now, called `name`, from what it was and from what was drawn in its shape."""
        if before is None:
            assert drawn is not None
            now = drawn.clone()
        elif self.mix is not None:
            mix = self.mix.to(before.device)
            now = (mix @ before.float().reshape(len(before), -1)).view(-1, *before.shape[1:]).to(before.dtype)
        else:
            now = self._copied(before, drawn)
        if self.amend is not None:
            generator = torch.Generator(now.device).manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
            self.amend(now, generator)
        return now

    def _copied(self, before: Tensor, drawn: Tensor | None) -> Tensor:
        now = _taken(before, self.axes, "start")
        if self.scale != 1.0:
            now = now * self.scale
        for axis in self.axes:
            new = (axis.start == NEWBORN).nonzero().flatten().to(now.device)
            if not len(new):
                continue
            if self.silent or drawn is None:
                now.index_fill_(axis.dim, new, 0.0)
            else:
                now.index_copy_(axis.dim, new, drawn.to(now).index_select(axis.dim, new))
        return now if self.axes or self.scale != 1.0 else now.clone()


def followed(before: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """A tensor along the axes it has, zero for newborns."""
    axes = tuple(axis for axis in axes if axis.dim < before.dim())
    now = _taken(before, axes, "source")
    for axis in axes:
        new = (axis.source == NEWBORN).nonzero().flatten().to(now.device)
        now = now.index_fill(axis.dim, new, 0)
    return now if axes else now.clone()


def _taken(before: Tensor, axes: tuple[Axis, ...], which: str) -> Tensor:
    for axis in axes:
        index: Tensor = getattr(axis, which)
        before = before.index_select(axis.dim, index.clamp_min(0).to(before.device))
    return before


@dataclass(frozen=True)
class Change:
    """One change of structure: what a model was and is, and where every number of it came from."""

    what: str
    """The verb: add_units, deepen, …"""
    before: dict[str, Any]
    after: dict[str, Any]
    """Configurations, as `to_dict` writes them."""
    total_before: int
    total_after: int
    """Parameters; a table that serves at both ends counts once."""
    origins: dict[str, Origin] = field(repr=False)
    """By the name of a parameter or buffer now."""
    seed: int = 0
