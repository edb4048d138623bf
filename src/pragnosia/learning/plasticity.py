"""Plasticity of a wired brain: each projection learns by the rule that the regions file names for it.

    stdp            pairs of spikes                                          m' = m + most dw
    triplet         pairs and triplets                                       m' = m + most dw
    three_factor    e' = e exp(-dt / tau) + dw                               m' = m + most dopamine e' dt / tau

m is a weight's magnitude, held in 0 to `most` (a multiple of the projection's weight): no synapse changes between
exciting and inhibiting. dw is stdp.py's; dopamine is modulation.py's factor, 0 at rest, so that a level of 2 held for
long gives what stdp gives, and one below rest undoes it. A spike counts from when the neuron fired: the delay of the
synapse does not enter. What is learned acts on spikes of the next step on.

    activity, learned, memory, state = learn(brain, state, steps)

Only synapses of neurons that fired are touched, by way of the step itself as well; the memories of three_factor, one
number per synapse, fade in every step. Traces: Morrison et al. 2008, doi:10.1007/s00422-008-0233-1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.learning.stdp import Traces, Window
from pragnosia.spiking.modulation import Levels, modulated
from pragnosia.spiking.regions import Brain, Currents, Projection
from pragnosia.spiking.running import Activity, run
from pragnosia.spiking.state import BrainState
from pragnosia.spiking.synapses import Synapses

PAIRS = Window()
# as in the minimal model of Pfister and Gerstner 2006: pairs weaken, triplets strengthen; the amplitudes are ours
TRIPLETS = Window(
    plus=0.0, minus=0.0105, tau_plus_ms=16.8, tau_minus_ms=33.7, plus3=0.0096, minus3=0.0, tau_x_ms=101, tau_y_ms=125
)
WINDOWS: dict[str, Window] = {"stdp": PAIRS, "triplet": TRIPLETS, "three_factor": PAIRS}
"""By the name a regions file gives in `plasticity`."""
ELIGIBLE_MS = 1000.0
"""Time constant of a synapse's memory; Izhikevich 2007."""
MOST = 2.0
"""The largest magnitude, in multiples of the projection's weight."""


@dataclass(frozen=True)
class Memory:
    """What plastic projections remember between steps, by their number."""

    traces: dict[int, Traces] = field(default_factory=dict)
    eligible: dict[int, Float[Tensor, " S"]] = field(default_factory=dict)


def plastic(brain: Brain) -> dict[int, str]:
    """The rule of each projection that has one, by the projection's number. Raises ConfigError for an unknown one."""
    found = {number: one.config.plasticity for number, one in enumerate(brain.projections)}
    for number, rule in found.items():
        if rule is not None and rule not in WINDOWS:
            what = f"plasticity in projections[{number}] ({brain.projections[number].config.title})"
            raise ConfigError(unknown_name(what, rule, WINDOWS))
    return {number: rule for number, rule in found.items() if rule is not None}


def learn(  # noqa: PLR0913
    brain: Brain,
    state: BrainState,
    steps: int,
    currents: Currents | None = None,
    *,
    memory: Memory | None = None,
    levels: Levels | None = None,
    windows: Mapping[str, Window] = WINDOWS,
    most: float = MOST,
    threads: int = 1,
    events: bool = False,
) -> tuple[Activity, Brain, Memory, BrainState]:
    """Take steps in which plastic projections learn; nothing that is handed in changes.

    `brain` is as it was built; the modulators' `levels` act on how it runs and, by dopamine, on what it learns, and
    are not part of what comes back. Rows of a batch share the weights, and their changes add up.

    Raises ConfigError for a rule that is not defined, or a brain that has none.
    """
    rules = plastic(brain)
    if not rules:
        raise ConfigError(
            f"no projection is plastic; name a rule for one, as in plasticity: stdp (of {', '.join(WINDOWS)})"
        )
    levels = levels or Levels()
    learned, memory = _own(brain, rules), _begun(brain, rules, state.rows, memory)
    synapses = {number: _Plastic.of(learned.projections[number], brain, most) for number in rules}
    state, parts = state.cloned(), []
    for at in range(steps):
        running = modulated(learned, levels)
        part, state = run(running, state, 1, currents, events=True, threads=threads, consume=True)
        assert part.events is not None
        spikes = _spikes(brain, part.events, state.rows)
        for number, rule in rules.items():
            change, memory.traces[number] = synapses[number].change(
                spikes, memory.traces[number], windows[rule], brain.config.dt_ms
            )
            if rule == "three_factor":
                share = brain.config.dt_ms / ELIGIBLE_MS
                kept = memory.eligible[number].mul_(math.exp(-share)).add_(change)
                change = kept * (levels.factor("dopamine") * share)
                if not levels.factor("dopamine"):
                    continue
            synapses[number].add(change)
        part.events[:, 1] = at
        parts.append(part)
    return _joined(brain, parts, state.rows, events=events), learned, memory, state


def changed(before: Brain, after: Brain) -> list[dict[str, Any]]:
    """Of each plastic projection: its rule, and how its weights moved."""
    found = []
    for number, rule in plastic(before).items():
        one, other = (brain.projections[number].synapses for brain in (before, after))
        weights = one.weights.expand(one.count)
        found.append(
            {
                "projection": before.projections[number].config.title,
                "rule": rule,
                "synapses": one.count,
                "changed": int((weights != other.weights).sum()),
                "mean_before": float(weights.abs().mean()),
                "mean_after": float(other.weights.abs().mean()),
            }
        )
    return found


@dataclass(frozen=True)
class _Plastic:
    """A projection's synapses, found from either end."""

    config: tuple[str, str]
    synapses: Synapses
    source: Tensor
    target: Tensor
    by_target: Tensor
    """Synapses in order of the target."""
    target_starts: Tensor
    sign: Tensor
    most: float

    @classmethod
    def of(cls, one: Projection, brain: Brain, most: float) -> _Plastic:
        size = brain.region(one.config.target).config.size
        target = one.synapses.slots.long() % size
        counts = torch.bincount(target, minlength=size)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        sign = torch.where(one.synapses.weights < 0, -1.0, 1.0)
        ends = (one.config.source, one.config.target)
        by_target = target.argsort(stable=True)
        bound = most * abs(one.config.weight)
        return cls(ends, one.synapses, one.synapses.sources, target, by_target, starts, sign, bound)

    def change(
        self, spikes: Mapping[str, Tensor], traces: Traces, window: Window, dt_ms: float
    ) -> tuple[Float[Tensor, " S"], Traces]:
        """As stdp.py's, of the synapses there are and of those whose ends fired."""
        pre, post = (spikes[name] for name in self.config)
        faded = Traces(
            traces.pre * math.exp(-dt_ms / window.tau_plus_ms),
            traces.post * math.exp(-dt_ms / window.tau_minus_ms),
            traces.slow_pre * math.exp(-dt_ms / window.tau_x_ms),
            traces.slow_post * math.exp(-dt_ms / window.tau_y_ms),
        )
        change = torch.zeros(self.synapses.count)
        row, one = _woken(self.target_starts, post)
        one = self.by_target[one]
        source, target = self.source[one], self.target[one]
        stronger = faded.pre[row, source] * (window.plus + window.plus3 * faded.slow_post[row, target])
        change.index_add_(0, one, stronger)
        row, one = _woken(self.synapses.starts, pre)
        source, target = self.source[one], self.target[one]
        weaker = faded.post[row, target] * (window.minus + window.minus3 * faded.slow_pre[row, source])
        change.index_add_(0, one, -weaker)
        after = Traces(faded.pre + pre, faded.post + post, faded.slow_pre + pre, faded.slow_post + post)
        return change, after

    def add(self, change: Float[Tensor, " S"]) -> None:
        """To the magnitudes, within their bounds; in place. A weight drawn beyond the bound is brought to it."""
        weights = self.synapses.weights
        magnitude = (weights * self.sign + self.most * change).clamp_(0, self.most)
        weights.copy_(magnitude * self.sign)


def _woken(starts: Tensor, spikes: Float[Tensor, "B N"]) -> tuple[Tensor, Tensor]:
    """Row and place of each entry that belongs to a neuron that fired."""
    row, neuron = spikes.nonzero(as_tuple=True)
    begin = starts[neuron].long()
    counts = starts[neuron + 1].long() - begin
    before = counts.cumsum(0) - counts
    place = torch.arange(int(counts.sum())) + torch.repeat_interleave(begin - before, counts)
    return torch.repeat_interleave(row, counts), place


def _own(brain: Brain, rules: Mapping[int, str]) -> Brain:
    """The brain with weights of its own where they will change."""
    projections = list(brain.projections)
    for number in rules:
        one = projections[number].synapses
        weights = one.weights.expand(one.count).clone()
        projections[number] = replace(projections[number], synapses=replace(one, weights=weights))
    return replace(brain, projections=tuple(projections))


def _begun(brain: Brain, rules: Mapping[int, str], rows: int, memory: Memory | None) -> Memory:
    """A memory that may be written to: a copy of the one there is, or an empty one."""
    memory = memory or Memory()
    traces, eligible = dict(memory.traces), {number: one.clone() for number, one in memory.eligible.items()}
    for number, rule in rules.items():
        one = brain.projections[number]
        sizes = [brain.region(name).config.size for name in (one.config.source, one.config.target)]
        traces.setdefault(number, Traces.silent(*(torch.zeros(rows, size) for size in sizes)))
        if rule == "three_factor":
            eligible.setdefault(number, torch.zeros(one.synapses.count))
    return Memory(traces, eligible)


def _spikes(brain: Brain, events: Tensor, rows: int) -> dict[str, Float[Tensor, "B N"]]:
    """Who fired, by population."""
    fired = torch.zeros(rows, brain.num_neurons)
    fired[events[:, 0].long(), events[:, 2].long()] = 1
    sizes = [region.config.size for region in brain.regions]
    return dict(zip(brain.config.populations, fired.split(sizes, 1), strict=True))


def _joined(brain: Brain, parts: list[Activity], rows: int, *, events: bool) -> Activity:
    """What all steps did."""
    nothing = torch.zeros(rows, 0, len(brain.regions), dtype=torch.int32)
    delivered = torch.zeros(rows, len(brain.projections), dtype=torch.int64)
    found = [part.events for part in parts if part.events is not None]
    return Activity(
        counts=torch.cat([nothing, *(part.counts for part in parts)], 1),
        delivered=sum((part.delivered for part in parts), delivered),
        tally={},
        events=torch.cat(found) if events and found else None,
    )
