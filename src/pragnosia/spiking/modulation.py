"""Neuromodulators: four levels, 1 at rest, each a gain on something the whole brain shares.

    what             acts on                                           factor                         strength
    noradrenaline    currents and arrivals of every neuron             1 + strength (level - 1)       0.1
    serotonin        weights that inhibit                              1 + strength (level - 1)       0.5
    acetylcholine    weights of recurrent projections that excite,     1 - strength (level - 1)       0.5
                     and what a spike adds to the threshold
    dopamine         what a learning rule changes                      level - 1, may be negative     1

    dopamine = 1 + reward - expected,   expected += rate (reward - expected)

A factor that would be negative is 0 (dopamine's may be: what was worse than expected is unlearned). A release adds to a
level, which then fades back to rest. They change how a brain is run, never what it has learned: `modulated` gives
another brain.

Noradrenaline: Servan-Schreiber et al. 1990, doi:10.1126/science.2392679. Serotonin: Puig and Gulledge 2011,
doi:10.1007/s12035-011-8214-0. Acetylcholine: Hasselmo 2006, doi:10.1016/j.conb.2006.09.002. Dopamine: Schultz et al.
1997, doi:10.1126/science.275.5306.1593; Fremaux and Gerstner 2016, doi:10.3389/fncir.2015.00085. That these act on
those parts is taken from there; the strengths are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.spiking.neurons import LIFA
from pragnosia.spiking.regions import Brain, Projection, Region
from pragnosia.spiking.synapses import Synapses

STRENGTHS = {"noradrenaline": 0.1, "serotonin": 0.5, "acetylcholine": 0.5, "dopamine": 1.0}
FADING_MS = {"noradrenaline": 500.0, "serotonin": 2000.0, "acetylcholine": 1000.0, "dopamine": 200.0}
"""Time constants with which a release fades."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """How much there is of each, in multiples of what there is at rest."""

    noradrenaline: float = 1.0
    serotonin: float = 1.0
    acetylcholine: float = 1.0
    dopamine: float = 1.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not (math.isfinite(value) and (value >= 0 or entry.name == "dopamine")):
                raise ConfigError(f"the level of {entry.name} is {value}; it must be a number, 0 or more (1 is rest)")

    @classmethod
    def of(cls, levels: Mapping[str, float]) -> Levels:
        """Levels by name; those not named are at rest. Raises ConfigError."""
        for name in levels:
            if name not in STRENGTHS:
                raise ConfigError(unknown_name("modulator", name, STRENGTHS))
        return cls(**levels)

    def released(self, **amounts: float) -> Levels:
        """With so much more of some."""
        return replace(self, **{name: getattr(self, name) + amount for name, amount in amounts.items()})

    def faded(self, ms: float) -> Levels:
        """After so many milliseconds in which nothing was released."""
        return Levels(**{name: 1 + (getattr(self, name) - 1) * math.exp(-ms / FADING_MS[name]) for name in STRENGTHS})

    def factor(self, name: str) -> float:
        """What it multiplies its part with."""
        beyond: float = STRENGTHS[name] * (getattr(self, name) - 1)
        if name == "dopamine":
            return beyond
        return max(0.0, 1 - beyond if name == "acetylcholine" else 1 + beyond)


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The reward that is expected; dopamine tells what came beyond it."""

    reward: float = 0.0
    rate: float = 0.1

    def surprised(self, reward: float, levels: Levels) -> tuple[Levels, Expectation]:
        """The levels after a reward, with dopamine's set by the error of prediction, and what is expected next."""
        error = reward - self.reward
        return replace(levels, dopamine=1 + error), replace(self, reward=self.reward + self.rate * error)


def modulated(brain: Brain, levels: Levels) -> Brain:
    """The brain as it runs under these levels; the one given stays as it was."""
    if levels == Levels():
        return brain
    regions = tuple(_region(one, levels) for one in brain.regions)
    return replace(brain, regions=regions, projections=tuple(_projection(one, levels) for one in brain.projections))


def _region(region: Region, levels: Levels) -> Region:
    gain, neuron = region.gain * levels.factor("noradrenaline"), region.config.neuron
    if isinstance(neuron, LIFA):
        neuron = replace(neuron, adaptation_mv=neuron.adaptation_mv * levels.factor("acetylcholine"))
    return replace(region, gain=gain, config=replace(region.config, neuron=neuron))


def _projection(projection: Projection, levels: Levels) -> Projection:
    config, synapses = projection.config, projection.synapses
    if config.weight < 0:
        factor = levels.factor("serotonin")
    elif config.role == "recurrent":
        factor = levels.factor("acetylcholine")
    else:
        return projection
    return replace(projection, synapses=Synapses(synapses.starts, synapses.slots, factor * synapses.strengths))
