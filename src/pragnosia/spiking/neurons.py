"""Neurons as pure steps: `spikes, state = step(neuron, given, state, dt_ms)`.

Voltages [mV] of LIF and LIF-A are counted from rest. With alpha = exp(-dt / tau) and rho = exp(-dt / tau_a):

    LIF          u = alpha v + (1 - alpha) i + j + n        z = H(u - theta)         v' = u - z theta
    LIF-A        the same u                                 z = H(u - theta - beta w)    w' = rho w + z
    Izhikevich   dv/dt = 0.04 v^2 + 5 v + 140 - w + i       z = H(v - 30), cut off   z: v' = c, w' = w + d
                 dw/dt = a (b v - w)                        two half steps of v, one of w

i is a current (times resistance: where the membrane would settle), j a jump, n noise. For so many steps after a spike a
neuron is refractory: it integrates and does not fire. With conductances u decays towards the voltage at which all
currents balance, by exponential Euler.

LIF-A: Bellec et al. 2020, doi:10.1038/s41467-020-17236-y, eq. 6 to 8, whose reset comes a step later. Izhikevich 2003,
doi:10.1109/TNN.2003.820440, eq. 1 to 3; its two half steps are the author's own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pragnosia.errors import ConfigError

PEAK_MV = 30.0
"""Where a spike of Izhikevich's neuron is cut off."""


class Membranes(NamedTuple):
    """What the neurons of a population carry from step to step."""

    v: Float[Tensor, "B N"]
    """Potential [mV]."""
    w: Float[Tensor, "B N"]
    """Adaptation (spikes, fading) or recovery [mV]; LIF has none and leaves it as it is."""
    clock: UInt8[Tensor, "B N"]
    """Steps of refractoriness left."""


class Given(NamedTuple):
    """What a population is given in one step."""

    current: Float[Tensor, "B N"]
    """[mV]."""
    jump: Float[Tensor, "B N"] | None = None
    """[mV]."""
    conductance: Float[Tensor, "B N"] | None = None
    """All that is open, in multiples of the leak's."""
    pull: Float[Tensor, "B N"] | None = None
    """Open conductances times their reversal potentials [mV]; with `conductance`."""
    noise: Float[Tensor, "B N"] | None = None
    """[mV]."""


Fire = Callable[[Tensor], Tensor]
"""1 where the margin above threshold is positive; a rule that learns by slopes hands in one that has a slope."""
Compete = Callable[[Tensor, Tensor], Tensor]
"""(spikes, margin) -> how many millivolts each neuron is inhibited, 0 for who may fire."""


def heaviside(margin: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """1 above threshold, 0 at it and below."""
    return (margin > 0).to(margin.dtype)


@dataclass(frozen=True, kw_only=True)
class Leaky(ABC):
    """What leaks towards rest, and what it is given adds up."""

    tau_ms: float = 20.0
    threshold_mv: float = 15.0
    refractory_ms: float = 2.0

    @property
    def resting_mv(self) -> tuple[float, float]:
        """The range from which membranes begin."""
        return 0.0, self.threshold_mv

    @abstractmethod
    def integrate(self, given: Given, state: Membranes, dt_ms: float) -> tuple[Tensor, Membranes]:
        """How far above threshold each neuron came, and the state before anyone fired."""

    @abstractmethod
    def reset(self, spikes: Tensor, state: Membranes) -> Membranes:
        """After the spikes."""

    def _potential(self, given: Given, v: Tensor, dt_ms: float) -> Tensor:
        leak = math.exp(-dt_ms / self.tau_ms)
        if given.conductance is not None:
            assert given.pull is not None
            total = 1 + given.conductance
            towards = (given.current + given.pull) / total
            u = towards + (v - towards) * torch.exp(-dt_ms / self.tau_ms * total)
        else:
            u = leak * v + (1 - leak) * given.current
        u = u if given.jump is None else u + given.jump
        return u if given.noise is None else u + given.noise


@final
@dataclass(frozen=True, kw_only=True)
class LIF(Leaky):
    """Leaky integrate and fire."""

    kind: ClassVar[str] = "lif"

    def __post_init__(self) -> None:
        _positive(self, "tau_ms", "threshold_mv")

    def integrate(self, given: Given, state: Membranes, dt_ms: float) -> tuple[Tensor, Membranes]:
        u = self._potential(given, state.v.float(), dt_ms)
        return u - self.threshold_mv, state._replace(v=u)

    def reset(self, spikes: Tensor, state: Membranes) -> Membranes:
        return state._replace(v=state.v - spikes * self.threshold_mv)


@final
@dataclass(frozen=True, kw_only=True)
class LIFA(Leaky):
    """LIF with adaptation: each spike raises the threshold, which comes down slowly."""

    kind: ClassVar[str] = "lifa"
    tau_adaptation_ms: float = 200.0
    adaptation_mv: float = 1.0
    """What a spike adds to the threshold."""

    def __post_init__(self) -> None:
        _positive(self, "tau_ms", "threshold_mv", "tau_adaptation_ms")

    def integrate(self, given: Given, state: Membranes, dt_ms: float) -> tuple[Tensor, Membranes]:
        u, w = self._potential(given, state.v.float(), dt_ms), state.w.float()
        margin = u - (self.threshold_mv + self.adaptation_mv * w)
        return margin, state._replace(v=u, w=math.exp(-dt_ms / self.tau_adaptation_ms) * w)

    def reset(self, spikes: Tensor, state: Membranes) -> Membranes:
        return state._replace(v=state.v - spikes * self.threshold_mv, w=state.w + spikes)


@final
@dataclass(frozen=True, kw_only=True)
class Izhikevich:
    """Izhikevich's two equations; the defaults spike regularly."""

    kind: ClassVar[str] = "izhikevich"
    a: float = 0.02
    b: float = 0.2
    c: float = -65.0
    d: float = 8.0
    refractory_ms: float = 0.0

    @property
    def threshold_mv(self) -> float:
        """Where a spike is cut off."""
        return PEAK_MV

    @property
    def resting_mv(self) -> tuple[float, float]:
        """The range from which membranes begin."""
        return self.c - 5.0, self.c + 5.0

    def integrate(self, given: Given, state: Membranes, dt_ms: float) -> tuple[Tensor, Membranes]:
        """How far above its peak each spike came, and the state before anyone fired."""
        v, w, current = state.v.float(), state.w.float(), given.current
        if given.conductance is not None:
            assert given.pull is not None
            current = current + given.pull - given.conductance * v
        for more in (given.jump, given.noise):
            current = current if more is None else current + more
        for _ in range(2):
            v = v + 0.5 * dt_ms * (0.04 * v * v + 5 * v + 140 - w + current)
        return v - PEAK_MV, state._replace(v=v.clamp(max=PEAK_MV), w=w + dt_ms * self.a * (self.b * v - w))

    def reset(self, spikes: Tensor, state: Membranes) -> Membranes:
        """After the spikes."""
        return state._replace(v=torch.where(spikes > 0, self.c, state.v), w=state.w + self.d * spikes)


Neuron = LIF | LIFA | Izhikevich
NEURONS: dict[str, type[Neuron]] = {neuron.kind: neuron for neuron in (LIF, LIFA, Izhikevich)}


def step(
    neuron: Neuron,
    given: Given,
    state: Membranes,
    dt_ms: float,
    *,
    fire: Fire = heaviside,
    compete: Compete | None = None,
) -> tuple[Float[Tensor, "B N"], Membranes]:
    """Advance one population by one step: who spikes (1, else 0), and the new state.

    Arithmetic is in single precision at least, whatever the state is kept in.
    """
    kept = state.v.dtype
    margin, between = neuron.integrate(given, state, dt_ms)
    spikes = fire(margin) * (state.clock == 0)
    if compete is not None:
        inhibited = compete(spikes, margin)
        spikes = spikes * (inhibited == 0)
        between = between._replace(v=between.v - inhibited)
    # what is kept is rounded before the reset as well as after: so does the compiled step
    between = between._replace(v=between.v.to(kept).float(), w=between.w.to(kept).float())
    after = neuron.reset(spikes, between)
    clock = torch.where(spikes > 0, refractory_steps(neuron, dt_ms), state.clock.clamp(min=1) - 1)
    return spikes, Membranes(after.v.to(kept), after.w.to(kept), clock.to(torch.uint8))


def refractory_steps(neuron: Neuron, dt_ms: float) -> int:
    """Steps in which a neuron that fired does not."""
    return round(neuron.refractory_ms / dt_ms)


def _positive(neuron: object, *names: str) -> None:
    """Raise ConfigError for a number that must be positive and is not."""
    for name in names:
        if not getattr(neuron, name) > 0:
            raise ConfigError(f"neuron.{name} is {getattr(neuron, name)}; it must be greater than 0")
