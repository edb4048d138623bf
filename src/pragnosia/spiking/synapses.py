"""Synapses: who is wired to whom, how strongly and how far, and what a neuron makes of what arrives.

A projection's synapses lie by source neuron (compressed sparse rows). What was sent is under way in a ring of the
target: a spike at step t adds its weight where step t + delay will read.

    pulses         j = arrivals                                               weights [mV]
    currents       s = sigma s + arrivals,  i = s                             weights [mV], sigma = exp(-dt / tau_s)
    conductances   g = sigma g + arrivals,  i = g_e (E_e - v) + g_i (E_i - v)   weights in multiples of the leak
                   of positive weights excitation, of negative ones inhibition

Gerstner et al. 2014, Neuronal Dynamics, eq. 3.1 to 3.3. `deliver` is the reference: every synapse is asked whether its
source spiked, which keeps slopes for learning. `deliver_woken` and the compiled step touch the woken ones alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.spiking.neurons import Given


@dataclass(frozen=True)
class Synapses:
    """The synapses of a projection, by source neuron."""

    starts: Int32[Tensor, " N_plus_1"]
    """Where each source neuron's begin, and the end."""
    slots: Int32[Tensor, " S"]
    """delay [steps] * size of a step of the target's ring + channel and neuron in it."""
    weights: Float[Tensor, " S"]
    """Of each; or a single one, which is that of all. int8 with `scales`."""
    scales: Float[Tensor, " N"] | None = None
    """What the int8 weights of each source neuron are multiplied with (int8.py)."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.slots)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        parts = (self.starts, self.slots, self.weights, self.scales)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def strengths(self) -> Float[Tensor, " S"]:
        """The weights as numbers; of one for all a single one."""
        if self.scales is None:
            return self.weights
        return self.weights * torch.repeat_interleave(self.scales, self.starts.diff())

    @property
    def sources(self) -> Tensor:
        """(S,) the source neuron of each synapse."""
        counts = (self.starts[1:] - self.starts[:-1]).long()
        return torch.repeat_interleave(torch.arange(len(counts)), counts)


def deliver(
    synapses: Synapses, spikes: Float[Tensor, "B N"], ring: Float[Tensor, "B D C M"], clock: int
) -> Float[Tensor, "B D C M"]:
    """The ring with what the spikes of step `clock` sent; every synapse is read."""
    sent = spikes[:, synapses.sources] * synapses.strengths
    return (ring.flatten(1).index_add(1, _places(synapses.slots, ring, clock), sent.to(ring.dtype))).view_as(ring)


def deliver_woken(
    synapses: Synapses, spikes: Float[Tensor, "B N"], ring: Float[Tensor, "B D C M"], clock: int
) -> Float[Tensor, "B D C M"]:
    """The same, of which only synapses of neurons that spiked are read; weights get no slope from silent neurons."""
    row, neuron = spikes.nonzero(as_tuple=True)
    begin = synapses.starts[neuron].long()
    counts = synapses.starts[neuron + 1].long() - begin
    before = counts.cumsum(0) - counts
    one = torch.arange(int(counts.sum()), device=ring.device) + torch.repeat_interleave(begin - before, counts)
    places = _places(synapses.slots[one], ring, clock) + torch.repeat_interleave(row, counts) * ring[0].numel()
    sent = synapses.weights.expand(synapses.count)[one].to(ring.dtype)
    if synapses.scales is not None:
        sent = sent * torch.repeat_interleave(synapses.scales[neuron], counts)
    return ring.flatten().index_add(0, places, sent).view_as(ring)


def _places(slots: Tensor, ring: Tensor, clock: int) -> Tensor:
    """Where in a row of the ring the slots lie at step `clock`."""
    depth, step_size = ring.shape[1], ring[0, 0].numel()
    return (slots.long() + clock % depth * step_size) % (depth * step_size)


@dataclass(frozen=True, kw_only=True)
class Pulses:
    """What arrives makes the membrane jump."""

    kind: ClassVar[str] = "pulses"
    channels: ClassVar[int] = 1

    def receive(
        self, arrived: Float[Tensor, "B C N"], open_: Tensor | None, current: Tensor, dt_ms: float
    ) -> tuple[Given, Tensor | None]:
        """What the membranes are given, and what stays open."""
        return Given(current, jump=arrived[:, 0]), open_


@dataclass(frozen=True, kw_only=True)
class Currents:
    """What arrives opens a current that fades."""

    kind: ClassVar[str] = "currents"
    channels: ClassVar[int] = 1
    tau_ms: float = 5.0

    def __post_init__(self) -> None:
        _check_fading(self.tau_ms)

    def receive(
        self, arrived: Float[Tensor, "B C N"], open_: Tensor | None, current: Tensor, dt_ms: float
    ) -> tuple[Given, Tensor | None]:
        """What the membranes are given, and what stays open."""
        assert open_ is not None
        flows = math.exp(-dt_ms / self.tau_ms) * open_ + arrived
        return Given(current + flows[:, 0]), flows


@dataclass(frozen=True, kw_only=True)
class Conductances:
    """What arrives opens a conductance that fades: excitation pulls towards one potential, inhibition to another."""

    kind: ClassVar[str] = "conductances"
    channels: ClassVar[int] = 2
    tau_ms: float = 5.0
    """Of excitation."""
    tau_inhibition_ms: float = 10.0
    excitation_mv: float = 70.0
    """Reversal potential, counted as the neuron's voltages are."""
    inhibition_mv: float = -10.0

    def __post_init__(self) -> None:
        _check_fading(self.tau_ms, self.tau_inhibition_ms)

    def receive(
        self, arrived: Float[Tensor, "B C N"], open_: Tensor | None, current: Tensor, dt_ms: float
    ) -> tuple[Given, Tensor | None]:
        """What the membranes are given, and what stays open."""
        assert open_ is not None
        fading = torch.tensor([[math.exp(-dt_ms / self.tau_ms)], [math.exp(-dt_ms / self.tau_inhibition_ms)]])
        opened = fading.to(open_) * open_ + arrived
        pull = opened[:, 0] * self.excitation_mv + opened[:, 1] * self.inhibition_mv
        return Given(current, conductance=opened.sum(1), pull=pull), opened


Receptor = Pulses | Currents | Conductances
RECEPTORS: dict[str, type[Receptor]] = {receptor.kind: receptor for receptor in (Pulses, Currents, Conductances)}


def _check_fading(*taus_ms: float) -> None:
    for tau_ms in taus_ms:
        if not tau_ms > 0:
            raise ConfigError(f"a receptor's time constant is {tau_ms} ms; it must be greater than 0")
