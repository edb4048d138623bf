"""Running: many steps of a brain, by the compiled kernel where there is one, else by the reference.

activity, state = run(brain, state, steps)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from pragnosia.errors import ConfigError, SimulationError, unknown_name
from pragnosia.kernels import spikes as kernel
from pragnosia.spiking.neurons import Izhikevich, refractory_steps
from pragnosia.spiking.regions import Brain, Currents, Region
from pragnosia.spiking.state import BrainState, PopulationState
from pragnosia.spiking.synapses import deliver, deliver_woken

BACKENDS = ("compiled", "gathered", "reference")
EVENTS = 4_000_000
"""Room for so many events of one call of the kernel."""


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What some steps of a brain did."""

    counts: Int32[Tensor, "B T P"]
    """Spikes of each population in each step."""
    delivered: Int64[Tensor, "B J"]
    """Synapses of each projection that carried a spike."""
    tally: dict[str, Int32[Tensor, "B N"]]
    """Spikes of each neuron of the populations asked for."""
    events: Int32[Tensor, "E 3"] | None = None
    """Row, step and neuron (of the whole network) of each spike, where asked for."""

    @property
    def num_steps(self) -> int:
        """Steps taken."""
        return self.counts.shape[1]

    @property
    def synaptic_operations(self) -> int:
        """Weights that were added to a neuron."""
        return int(self.delivered.sum())


def run(  # noqa: PLR0913
    brain: Brain,
    state: BrainState,
    steps: int,
    currents: Currents | None = None,
    *,
    tally: tuple[str, ...] = (),
    events: bool = False,
    backend: str | None = None,
    threads: int = 1,
    consume: bool = False,
) -> tuple[Activity, BrainState]:
    """Take `steps` steps under constant currents from outside.

    `consume` gives the state away: it is advanced in place and must not be used again. `tally` names populations whose
    neurons' spikes are counted one by one. `threads` work at regions side by side, with the same result.

    Raises ConfigError for currents or names of nobody, and SimulationError for a membrane that is no number.
    """
    backend = backend or ("compiled" if _compilable(state) else "gathered")
    if backend not in BACKENDS:
        raise ConfigError(unknown_name("backend", backend, BACKENDS))
    currents = brain.checked(currents, state.rows)
    counted = {name: torch.zeros(state.rows, brain.region(name).config.size, dtype=torch.int32) for name in tally}
    if backend == "compiled":
        return _compiled(brain, state if consume else state.cloned(), steps, currents, counted, events, threads)
    return _by_torch(brain, state, steps, currents, counted, events, woken=backend == "gathered")


def _compilable(state: BrainState) -> bool:
    return kernel.supports(*(one.membranes.v for one in state.populations.values()))


def _compiled(
    brain: Brain,
    state: BrainState,
    steps: int,
    currents: Currents,
    counted: dict[str, Tensor],
    events: bool,
    threads: int,
) -> tuple[Activity, BrainState]:
    """`state` is advanced in place."""
    plain = {name: current.float().contiguous() for name, current in currents.items()}
    members = [
        _members(brain, region, state.populations[region.name], plain.get(region.name), counted.get(region.name))
        for region in brain.regions
    ]
    names = list(brain.config.populations)
    wires = [
        kernel.Wires(
            source=names.index(one.config.source),
            target=names.index(one.config.target),
            starts=one.synapses.starts,
            slots=one.synapses.slots,
            weights=one.synapses.weights,
            scales=one.synapses.scales,
        )
        for one in brain.projections
    ]
    window = max(min(brain.window, steps), 1)
    each = state.rows * brain.num_neurons
    capacity = max(min(EVENTS, each * steps), each * window) if events else 0
    parts: list[kernel.Fired] = []
    done = 0
    while done < steps:
        part = kernel.advance(
            *(members, wires),
            rows=state.rows,
            steps=steps - done,
            window=window,
            clock=state.clock + done,
            seed=brain.config.seed,
            threads=threads,
            capacity=capacity,
        )
        if part.odd is not None:
            raise SimulationError(odd_membrane(names[part.odd[0]], part.odd[1]))
        part.events[:, 1] += done
        done += part.steps
        parts.append(part)
    nothing = torch.zeros(state.rows, 0, len(brain.regions), dtype=torch.int32)
    activity = Activity(
        counts=torch.cat([nothing, *(part.counts for part in parts)], 1),
        delivered=sum((part.delivered for part in parts), torch.zeros(state.rows, len(wires), dtype=torch.int64)),
        tally=counted,
        events=torch.cat([part.events for part in parts]) if events and parts else None,
    )
    return activity, BrainState(state.populations, state.clock + steps)


def _members(
    brain: Brain, region: Region, state: PopulationState, current: Tensor | None, tally: Tensor | None
) -> kernel.Members:
    config, dt = region.config, brain.config.dt_ms
    neuron, receptor = config.neuron, config.receptor
    inhibition = neuron.threshold_mv if config.inhibition_mv is None else config.inhibition_mv
    numbers: dict[str, float] = {
        "model": kernel.MODELS[neuron.kind],
        "receptor": kernel.RECEPTORS[receptor.kind],
        "neurons": config.size,
        "first": brain.first[region.name],
        "depth": state.ring.shape[1],
        "winners": config.winners or 0,
        "refractory": refractory_steps(neuron, dt),
        "is_bf16": int(state.membranes.v.dtype is torch.bfloat16),
        "channels": receptor.channels,
        "threshold": neuron.threshold_mv,
        "noise": region.noise_mv,
        "gain": region.gain,
        "inhibition": inhibition,
        "dt": dt,
        "tau": getattr(neuron, "tau_ms", 1.0),
        **_fading(asdict(neuron), asdict(receptor), dt),
    }
    if isinstance(neuron, Izhikevich):
        numbers |= {name: getattr(neuron, name) for name in "abcd"}
    membranes = state.membranes._asdict()
    tensors = {**membranes, "open": state.open, "ring": state.ring, "bias": region.bias}
    return kernel.Members(numbers=numbers, tensors={**tensors, "current": current, "tally": tally})


def _fading(neuron: Mapping[str, float], receptor: Mapping[str, float], dt: float) -> dict[str, float]:
    """Factors per step, of what has a time constant."""
    found = {"beta": neuron.get("adaptation_mv", 0.0)}
    for name, values, key in (
        ("leak", neuron, "tau_ms"),
        ("rho", neuron, "tau_adaptation_ms"),
        ("sigma_0", receptor, "tau_ms"),
        ("sigma_1", receptor, "tau_inhibition_ms"),
    ):
        found[name] = math.exp(-dt / values[key]) if key in values else 0.0
    return found | {
        "reversal_0": receptor.get("excitation_mv", 0.0),
        "reversal_1": receptor.get("inhibition_mv", 0.0),
    }


def _by_torch(
    brain: Brain,
    state: BrainState,
    steps: int,
    currents: Currents,
    counted: dict[str, Tensor],
    events: bool,
    *,
    woken: bool,
) -> tuple[Activity, BrainState]:
    counts = torch.zeros(state.rows, steps, len(brain.regions), dtype=torch.int32)
    delivered = torch.zeros(state.rows, len(brain.projections), dtype=torch.int64)
    fan_outs = [(one.synapses.starts[1:] - one.synapses.starts[:-1]).float() for one in brain.projections]
    noted: list[Tensor] = []
    for at in range(steps):
        spikes, state = brain.step(state, currents, deliver=deliver_woken if woken else deliver)
        if (odd := state.odd()) is not None:
            raise SimulationError(odd_membrane(odd, state.clock - 1))
        counts[:, at] = torch.stack([one.sum(1) for one in spikes.values()], 1)
        for number, (one, fan_out) in enumerate(zip(brain.projections, fan_outs, strict=True)):
            delivered[:, number] += (spikes[one.config.source] @ fan_out).long()
        for name, tally in counted.items():
            tally += spikes[name].int()
        if events:
            noted.append(_events(brain, spikes, at))
    found = torch.cat(noted) if noted else None
    return Activity(counts=counts, delivered=delivered, tally=counted, events=found), state


def _events(brain: Brain, spikes: Mapping[str, Float[Tensor, "B N"]], at: int) -> Int32[Tensor, "E 3"]:
    found = []
    for name, one in spikes.items():
        row, neuron = one.nonzero(as_tuple=True)
        found.append(torch.stack([row, torch.full_like(row, at), neuron + brain.first[name]], 1))
    return torch.cat(found).int()


def odd_membrane(name: str, step: int) -> str:
    """The one line for a membrane that is no number."""
    return (
        f"a membrane of population {name!r} is not a number at step {step}; look at the weights, currents and time"
        " constants that reach it"
    )
