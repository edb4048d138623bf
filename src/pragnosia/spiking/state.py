"""BrainState: all that a spiking network carries from step to step, as a value."""

from __future__ import annotations

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
        opened = None if self.open is None else self.open.clone()
        return PopulationState(Membranes(*(one.clone() for one in self.membranes)), opened, self.ring.clone())


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
        return replace(self, populations={name: one.cloned() for name, one in self.populations.items()})

    def odd(self) -> str | None:
        """The first population with a membrane that is no number."""
        for name, one in self.populations.items():
            if not bool(torch.isfinite(one.membranes.v).all()):
                return name
        return None
