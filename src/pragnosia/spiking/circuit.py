"""A brain laid flat: all neurons in a row, so that a batch of texts goes through them by whole products.

    u = leak v + drive + arrivals     margin = u - (threshold + adaptation w)     z = H(margin), where not refractory
    v' = u - z threshold              w' = fading w + z                           losers go down by their inhibition

These are the equations of neurons.py for lif and lifa with pulses. A projection that wires every pair (`fan_in: all`)
is a matrix and sends by one product; of any other only the synapses of neurons that spiked are read, as in
`deliver_woken`. What is under way to a neuron lies in a ring (D, B, N), by the step at which it arrives.

D steps of delay, B rows, N neurons of all regions, S synapses of a projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.spiking.neurons import LIF, LIFA, Membranes, refractory_steps
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.state import BrainState, PopulationState


@dataclass(frozen=True)
class Way:
    """One projection: from which neurons of the row to which, how late; `weights` are handed in at every call."""

    number: int
    source: slice
    target: slice
    delay: int
    """Of a matrix; else the longest."""
    starts: Int[Tensor, " N_plus_1"] | None = None
    """None: a matrix (sources, targets)."""
    reaches: Int[Tensor, " S"] | None = None
    """The target of each synapse, counted over the whole row."""
    delays: Int[Tensor, " S"] | None = None

    def send(self, spikes: Float[Tensor, "B N"], weights: Tensor, ring: Float[Tensor, "D B N"], at: int) -> None:
        """Add what the spikes of step `at` send to the ring."""
        if self.starts is None:
            ring[(at + self.delay) % len(ring), :, self.target].addmm_(spikes[:, self.source], weights)
            return
        row, one = self.woken(spikes)
        places = self._places(row, one, ring.shape, at)
        ring.view(-1).index_add_(0, places, weights.expand(len(self.reaches))[one].to(ring.dtype))  # type: ignore[arg-type]

    def woken(self, spikes: Float[Tensor, "B N"]) -> tuple[Tensor, Tensor]:
        """Row and number of every synapse whose source spiked."""
        assert self.starts is not None
        row, neuron = spikes[:, self.source].nonzero(as_tuple=True)
        begin = self.starts[neuron].long()
        counts = self.starts[neuron + 1].long() - begin
        before = counts.cumsum(0) - counts
        one = torch.arange(int(counts.sum()), device=spikes.device) + torch.repeat_interleave(begin - before, counts)
        return torch.repeat_interleave(row, counts), one

    def back(self, weights: Tensor) -> dict[int, Tensor]:
        """By delay: the synapses as a matrix (sources, neurons reached), for the way back."""
        if self.starts is None:
            return {self.delay: weights}
        assert self.reaches is not None
        assert self.delays is not None
        values, last = weights.expand(len(self.reaches)), len(self.starts) - 1
        sources = torch.repeat_interleave(torch.arange(last, device=values.device), self.starts.long().diff())
        found, size = {}, (last, self.target.stop - self.target.start)
        for delay in self.delays.unique().tolist():
            those = self.delays == delay
            places = torch.stack([sources[those], self.reaches[those].long() - self.target.start])
            made = torch.sparse_coo_tensor(places, values[those], size, check_invariants=False)
            found[int(delay)] = made.coalesce()
        return found

    def _places(self, row: Tensor, one: Tensor, shape: Sequence[int], at: int) -> Tensor:
        assert self.reaches is not None
        assert self.delays is not None
        depth, rows, neurons = shape
        return ((at + self.delays[one].long()) % depth * rows + row) * neurons + self.reaches[one].long()


@dataclass(frozen=True)
class Circuit:
    """What of a brain does not learn. Raises ConfigError for neurons it has no equations for."""

    names: tuple[str, ...]
    spans: tuple[slice, ...]
    leak: Float[Tensor, " N"]
    fading: Float[Tensor, " N"]
    threshold: Float[Tensor, " N"]
    adaptation: Float[Tensor, " N"]
    bias: Float[Tensor, " N"]
    """What the constant drive adds in a step [mV]."""
    refractory: Int[Tensor, " N"] | None
    """None where no neuron is."""
    winners: tuple[tuple[slice, int, float], ...]
    ways: tuple[Way, ...]
    depths: tuple[int, ...]
    """Steps of delay to each region."""

    @classmethod
    def of(cls, brain: Brain, device: torch.device | None = None) -> Circuit:
        """Lay a brain flat."""
        spans, firsts = [], brain.first
        for region in brain.regions:
            neuron, receptor = region.config.neuron, region.config.receptor
            if not isinstance(neuron, LIF | LIFA) or receptor.kind != "pulses":
                raise ConfigError(
                    f"populations.{region.name}: a language model is made of lif or lifa neurons with pulses, this has "
                    f"{neuron.kind} with {receptor.kind}; change neuron.kind and receptor.kind"
                )
            if region.noise_mv:
                raise ConfigError(
                    f"populations.{region.name}: a language model runs without noise; take drive.constant"
                )
            spans.append(slice(firsts[region.name], firsts[region.name] + region.config.size))
        dt, regions = brain.config.dt_ms, brain.regions

        def each(values: Sequence[float]) -> Tensor:
            sizes = torch.tensor([region.config.size for region in regions])
            return torch.repeat_interleave(torch.tensor(values, dtype=torch.float32), sizes).to(device)

        leak = each([math.exp(-dt / region.config.neuron.tau_ms) for region in regions])  # type: ignore[union-attr]
        steps = each([refractory_steps(region.config.neuron, dt) for region in regions])
        adapts = [region.config.neuron if isinstance(region.config.neuron, LIFA) else None for region in regions]
        return cls(
            names=tuple(region.name for region in regions),
            spans=tuple(spans),
            leak=leak,
            fading=each([0.0 if one is None else math.exp(-dt / one.tau_adaptation_ms) for one in adapts]),
            threshold=each([region.config.neuron.threshold_mv for region in regions]),
            adaptation=each([0.0 if one is None else one.adaptation_mv for one in adapts]),
            bias=(1 - leak) * torch.cat([region.bias for region in regions]).to(device),
            refractory=steps.to(torch.uint8) if bool(steps.any()) else None,
            winners=tuple(
                (
                    span,
                    region.config.winners,
                    region.config.neuron.threshold_mv
                    if region.config.inhibition_mv is None
                    else region.config.inhibition_mv,
                )
                for span, region in zip(spans, regions, strict=True)
                if region.config.winners is not None
            ),
            ways=tuple(_way(brain, number, device) for number in range(len(brain.projections))),
            depths=tuple(brain.config.depth(region.name) for region in regions),
        )

    @cached_property
    def depth(self) -> int:
        """Steps of the ring."""
        return max(self.depths)

    def span(self, name: str) -> slice:
        """Where a region lies."""
        return self.spans[self.names.index(name)]

    def thresholds(self, names: Sequence[str]) -> Float[Tensor, " I"]:
        """Of the neurons of these regions [mV]."""
        return torch.cat([self.threshold[self.span(name)] for name in names])

    def laid(self, state: BrainState) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """v, w, clock (B, N) and the ring (D, B, N), whose first entry is read next; copies."""
        parts = [state.populations[name] for name in self.names]
        v, w, clock = (torch.cat([part.membranes[at] for part in parts], 1) for at in range(3))
        ring = v.new_zeros((self.depth, *v.shape), dtype=torch.float32)
        for part, span, depth in zip(parts, self.spans, self.depths, strict=True):
            for ahead in range(depth):
                ring[ahead, :, span] = part.ring[:, (state.clock + ahead) % depth, 0]
        return v.float(), w.float(), clock, ring

    def taken_up(self, laid: tuple[Tensor, Tensor, Tensor, Tensor], clock: int, read: int) -> BrainState:
        """The state after `clock` steps, of a ring whose entry `read` comes next."""
        v, w, refractory, ring = laid
        found = {}
        for name, span, depth in zip(self.names, self.spans, self.depths, strict=True):
            own = ring.new_zeros(len(v), depth, 1, span.stop - span.start)
            for ahead in range(depth):
                own[:, (clock + ahead) % depth, 0] = ring[(read + ahead) % self.depth, :, span]
            parts = Membranes(*(part[:, span].contiguous() for part in (v, w, refractory)))
            found[name] = PopulationState(parts, None, own)
        return BrainState(found, clock)


def _way(brain: Brain, number: int, device: torch.device | None) -> Way:
    one = brain.projections[number]
    sizes = brain.config.populations
    source, target = brain.first[one.config.source], brain.first[one.config.target]
    ends = (
        slice(source, source + sizes[one.config.source].size),
        slice(target, target + sizes[one.config.target].size),
    )
    low, high = brain.config.delay_steps(one.config)
    if one.config.fan_in == "all" and low == high:
        return Way(number, *ends, low)
    slots, size = one.synapses.slots.to(device), sizes[one.config.target].size
    reaches = (slots % size + target).int()
    return Way(number, *ends, high, one.synapses.starts.to(device), reaches, slots // size)
