"""BrainState: all that a spiking network carries from step to step, as a value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from pragnosia.spiking.neurons import Membranes


@dataclass(frozen=True)
class PopulationState:
    """Of one population."""

    membranes: Membranes
    open: Float[Tensor, "B C N"] | None
    """Currents or conductances that synapses have open; None for pulses."""
    ring: Float[Tensor, "B D C N"]
    """What is under way to each neuron, by the step at which it arrives."""

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [*self.membranes, self.ring, *([] if self.open is None else [self.open])]

    def cloned(self) -> PopulationState:
        """A copy that may be advanced in place."""
        return self.each(torch.clone)

    def each(self, change: Callable[[Tensor], Tensor]) -> PopulationState:
        """With every tensor as `change` has it."""
        opened = None if self.open is None else change(self.open)
        return PopulationState(Membranes(*(change(one) for one in self.membranes)), opened, change(self.ring))

    @classmethod
    def joined(cls, parts: Sequence[PopulationState]) -> PopulationState:
        """Rows of several as those of one."""
        opened = None if parts[0].open is None else torch.cat([one.open for one in parts if one.open is not None])
        membranes = Membranes(*(torch.cat(each) for each in zip(*(one.membranes for one in parts), strict=True)))
        return cls(membranes, opened, torch.cat([one.ring for one in parts]))


@dataclass(frozen=True)
class BrainState:
    """Of a whole network, after `clock` steps."""

    populations: dict[str, PopulationState]
    clock: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for one in self.populations.values() for tensor in one.tensors)

    @property
    def rows(self) -> int:
        """Batch size."""
        return len(next(iter(self.populations.values())).ring)

    def cloned(self) -> BrainState:
        """A copy that may be advanced in place."""
        return self.each(torch.clone)

    def each(self, change: Callable[[Tensor], Tensor]) -> BrainState:
        """With every tensor, whose first dimension is the batch, as `change` has it."""
        return replace(self, populations={name: one.each(change) for name, one in self.populations.items()})

    @classmethod
    def joined(cls, states: Sequence[BrainState]) -> BrainState:
        """Rows of several states as those of one, which is as old as the oldest: what is under way keeps its place."""
        clock = max(state.clock for state in states)
        aged = [state.aged(clock) for state in states]
        names = aged[0].populations
        return cls({name: PopulationState.joined([one.populations[name] for one in aged]) for name in names}, clock)

    def aged(self, clock: int) -> BrainState:
        """As if it had begun later, so that its clock stands there; noise by the clock would be another."""
        turn = clock - self.clock
        turned = {name: replace(one, ring=one.ring.roll(turn, 1)) for name, one in self.populations.items()}
        return BrainState(turned, clock)

    def odd(self) -> str | None:
        """The first population with a membrane that is no number."""
        for name, one in self.populations.items():
            if not bool(torch.isfinite(one.membranes.v).all()):
                return name
        return None
