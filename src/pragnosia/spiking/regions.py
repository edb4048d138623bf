"""Regions: populations wired into a brain, and its one step.

    spikes, state = brain.step(state, currents)

`step` is the reference in plain torch: every membrane, every synapse, with slopes for who learns by them. `run`
(running.py) takes many steps by the compiled kernel, equal to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.spiking.configuration import DRIVES, BrainConfig, Drive, PopulationConfig, ProjectionConfig
from pragnosia.spiking.inhibition import inhibited
from pragnosia.spiking.keeping import kept_bias, kept_synapses
from pragnosia.spiking.neurons import Compete, Fire, Izhikevich, Leaky, Membranes, heaviside
from pragnosia.spiking.neurons import step as neuron_step
from pragnosia.spiking.noise import noise
from pragnosia.spiking.state import BrainState, PopulationState
from pragnosia.spiking.synapses import Synapses, deliver
from pragnosia.spiking.wiring import drawn

Currents = Mapping[str, Float[Tensor, "B N"]]
"""What populations are given from outside [mV], by name."""
Deliver = Callable[[Synapses, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class Region:
    """A population with what was drawn for it."""

    name: str
    config: PopulationConfig
    bias: Float[Tensor, " N"]
    """Each neuron's own current [mV]."""
    noise_mv: float
    """Spread of the noise of one step."""
    gain: float = 1.0
    """What currents and arrivals are multiplied with (modulation.py)."""

    @property
    def compete(self) -> Compete | None:
        """Lateral inhibition, where there is any."""
        if self.config.winners is None:
            return None
        down = self.config.neuron.threshold_mv if self.config.inhibition_mv is None else self.config.inhibition_mv
        return lambda spikes, margin: inhibited(spikes, margin, winners=self.config.winners or 0, inhibition_mv=down)


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Synapses between two populations."""

    config: ProjectionConfig
    synapses: Synapses


@dataclass(frozen=True, kw_only=True)
class Brain:
    """Regions and projections; a value, which no step changes."""

    config: BrainConfig
    regions: tuple[Region, ...]
    projections: tuple[Projection, ...]

    @classmethod
    def build(cls, config: BrainConfig, *, drive: str = "constant") -> Brain:
        """Draw what the configuration leaves to chance, or read the synapses that are kept. Raises ConfigError.

        `drive` is constant or noise.
        """
        if config.synapses is None:
            return cls.wired(config, (drawn(config, number) for number in range(len(config.projections))), drive=drive)
        return cls.wired(config, kept_synapses(config), drive=drive)

    @classmethod
    def wired(cls, config: BrainConfig, wires: Iterable[Synapses], *, drive: str = "constant") -> Brain:
        """With these synapses, one value for each projection. Raises ConfigError for an unknown drive."""
        if drive not in DRIVES:
            raise ConfigError(unknown_name("drive", drive, DRIVES))
        regions = tuple(_region(config, number, drive) for number in range(len(config.populations)))
        projections = tuple(
            Projection(config=one, synapses=synapses) for one, synapses in zip(config.projections, wires, strict=True)
        )
        return cls(config=config, regions=regions, projections=projections)

    @property
    def num_neurons(self) -> int:
        """Of all regions."""
        return sum(region.config.size for region in self.regions)

    @property
    def num_synapses(self) -> int:
        """Of all projections."""
        return sum(one.synapses.count for one in self.projections)

    @cached_property
    def first(self) -> dict[str, int]:
        """Where each region's neurons begin among all of them."""
        sizes = [region.config.size for region in self.regions]
        return dict(zip(self.config.populations, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))

    @cached_property
    def window(self) -> int:
        """Steps for which regions are alone: the shortest delay between two of them."""
        between = [one for one in self.config.projections if one.source != one.target]
        return min((self.config.delay_steps(one)[0] for one in between), default=16)

    def region(self, name: str) -> Region:
        """The region of that name. Raises ConfigError."""
        if name not in self.config.populations:
            raise ConfigError(unknown_name("population", name, self.config.populations))
        return next(region for region in self.regions if region.name == name)

    def begin(self, batch: int = 1, dtype: torch.dtype = torch.float32) -> BrainState:
        """Membranes at random between rest and threshold, the same in every row, and nothing under way.

        Raises ConfigError where a membrane kept in `dtype` would never come to rest.
        """
        begun = [self._begin(number, batch, dtype) for number in range(len(self.regions))]
        return BrainState(dict(zip(self.config.populations, begun, strict=True)))

    def step(
        self,
        state: BrainState,
        currents: Currents | None = None,
        *,
        fire: Fire = heaviside,
        deliver: Deliver = deliver,
    ) -> tuple[dict[str, Float[Tensor, "B N"]], BrainState]:
        """One step of all regions: who spiked, and the new state. Raises ConfigError for currents of nobody."""
        currents = self.checked(currents, state.rows)
        spikes, after = {}, {}
        for number, region in enumerate(self.regions):
            spikes[region.name], after[region.name] = self._step(number, state, currents.get(region.name), fire)
        for one in self.projections:
            target = after[one.config.target]
            ring = deliver(one.synapses, spikes[one.config.source], target.ring, state.clock)
            after[one.config.target] = replace(target, ring=ring)
        return spikes, BrainState(after, state.clock + 1)

    def checked(self, currents: Currents | None, rows: int) -> Currents:
        """Currents that fit. Raises ConfigError."""
        for name, current in (currents or {}).items():
            expected = (rows, self.region(name).config.size)
            if tuple(current.shape) != expected:
                raise ConfigError(f"the current of {name} has shape {tuple(current.shape)}, expected {expected}")
        return currents or {}

    def _begin(self, number: int, batch: int, dtype: torch.dtype) -> PopulationState:
        region = self.regions[number]
        size, channels = region.config.size, region.config.receptor.channels
        _check_resolution(region, self.config.dt_ms, dtype)
        low, high = region.config.neuron.resting_mv
        at = _chance(self.config, number, 1).uniform(low, high, size)
        v = torch.from_numpy(at.astype(np.float32)).to(dtype).expand(batch, -1).contiguous()
        w = torch.zeros_like(v)
        if isinstance(region.config.neuron, Izhikevich):
            w = (region.config.neuron.b * v.float()).to(dtype)
        opened = None if region.config.receptor.kind == "pulses" else torch.zeros(batch, channels, size)
        ring = torch.zeros(batch, self.config.depth(region.name), channels, size)
        return PopulationState(Membranes(v, w, torch.zeros(batch, size, dtype=torch.uint8)), opened, ring)

    def _step(
        self, number: int, state: BrainState, current: Tensor | None, fire: Fire
    ) -> tuple[Float[Tensor, "B N"], PopulationState]:
        """One region; what its projections carry is delivered afterwards."""
        region, before = self.regions[number], state.populations[self.regions[number].name]
        slot = state.clock % before.ring.shape[1]
        arrived = region.gain * before.ring[:, slot]
        ring = before.ring.clone()
        ring[:, slot] = 0
        drive = region.gain * (region.bias if current is None else region.bias + current)
        drive = drive.expand(state.rows, -1)
        given, opened = region.config.receptor.receive(arrived, before.open, drive, self.config.dt_ms)
        if region.noise_mv:
            kicks = noise(self.config.seed, number, state.clock, before.membranes.v.shape)
            given = given._replace(noise=region.noise_mv * kicks)
        spikes, membranes = neuron_step(
            *(region.config.neuron, given, before.membranes, self.config.dt_ms), fire=fire, compete=region.compete
        )
        return spikes, PopulationState(membranes, opened, ring)


def _chance(config: BrainConfig, number: int, purpose: int) -> np.random.Generator:
    """Numbers of a region's own, apart from those of the projections."""
    return np.random.Generator(np.random.Philox(key=[config.seed, (purpose << 32) + number]))


def _region(config: BrainConfig, number: int, drive: str) -> Region:
    name = list(config.populations)[number]
    population = config.populations[name]
    given = population.drive.get(drive, Drive())
    bias = given.mean_mv + given.spread_mv * _chance(config, number, 2).uniform(-1, 1, population.size)
    kept = kept_bias(config, name, drive)
    sigma = given.sigma_mv
    if isinstance(population.neuron, Leaky):
        # so that an undisturbed membrane, which forgets as it leaks, spreads by sigma
        sigma *= math.sqrt(-math.expm1(-2 * config.dt_ms / population.neuron.tau_ms))
    own = torch.from_numpy(bias.astype(np.float32)) if kept is None else kept
    return Region(name=name, config=population, bias=own, noise_mv=sigma)


def _check_resolution(region: Region, dt_ms: float, dtype: torch.dtype) -> None:
    """Raise ConfigError where a step's decay is less than half a digit of `dtype`: rounding would undo it for ever."""
    taus = {name: getattr(region.config.neuron, name, None) for name in ("tau_ms", "tau_adaptation_ms")}
    for name, tau in taus.items():
        if tau is not None and -math.expm1(-dt_ms / tau) < torch.finfo(dtype).eps / 2:
            raise ConfigError(
                f"populations.{region.name}: {name} {tau:g} in steps of {dt_ms:g} ms decays by less than {dtype} can"
                " tell, and would stand still; use float32"
            )
