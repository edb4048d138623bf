"""BrainConfig: which populations there are and how they are wired, read strictly from YAML.

    populations: {name: {size, neuron: {kind, …}, receptor: {kind, …}, drive: {constant, noise}, winners}}
    projections: [{source, target, fan_in, weight, delay_ms, plasticity}]
    neuron, receptor, drive: what a population has that says nothing of its own

An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.spiking.neurons import LIFA, NEURONS, Neuron, refractory_steps
from pragnosia.spiking.synapses import RECEPTORS, Pulses, Receptor

T = TypeVar("T")
DRIVES = ("constant", "noise")
_OWN = ("populations", "projections", "dt_ms", "seed", "synapses")
LARGEST_RING = 2**30
"""Numbers of spikes under way to one population: places in it are counted in 32 bits."""


@dataclass(frozen=True, kw_only=True)
class Drive:
    """What neurons are given from outside, without end."""

    mean_mv: float = 0.0
    spread_mv: float = 0.0
    """Each neuron's own is drawn once, from mean - spread to mean + spread."""
    sigma_mv: float = 0.0
    """Spread of an undisturbed LIF membrane under the noise; for Izhikevich, of the noise itself."""


@dataclass(frozen=True, kw_only=True)
class PopulationConfig:
    """One region."""

    size: int
    neuron: Neuron = field(default_factory=LIFA)
    receptor: Receptor = field(default_factory=Pulses)
    drive: dict[str, Drive] = field(default_factory=dict)
    """By name: constant, noise. What is not there is nothing."""
    winners: int | None = None
    """At most so many fire in a step (inhibition.py); None: no competition."""
    inhibition_mv: float | None = None
    """What who does not win goes down by; None: the threshold."""


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig:
    """Synapses from one population to another, drawn at random: every target neuron has `fan_in` sources."""

    source: str
    target: str
    fan_in: int | Literal["all"]
    """all: every source neuron once, of its own population itself as well."""
    weight: float
    """[mV] for pulses and currents, multiples of the leak for conductances; negative inhibits."""
    mixed: bool = False
    """Weights of both signs, Gaussian about 0 with this `weight` as their spread."""
    spread: float = 0.0
    """Weights are drawn from weight (1 - spread) to weight (1 + spread)."""
    delay_ms: float | tuple[float, float] = 1.0
    """One for all, or the range they are drawn from."""
    name: str = ""
    plasticity: str | None = None
    """Learning rule that may change the weights (learning/); None: they stay."""
    role: Literal["afferent", "recurrent"] = "afferent"
    """Acetylcholine weakens what is recurrent (modulation.py)."""

    @property
    def title(self) -> str:
        """Its name, or from where to where."""
        return self.name or f"{self.source} -> {self.target}"

    @property
    def delays_ms(self) -> tuple[float, float]:
        """The shortest and the longest."""
        return self.delay_ms if isinstance(self.delay_ms, tuple) else (self.delay_ms, self.delay_ms)


@dataclass(frozen=True, kw_only=True)
class BrainConfig:
    """A network, completely. Raises ConfigError for one that cannot be."""

    populations: dict[str, PopulationConfig]
    projections: list[ProjectionConfig] = field(default_factory=list)
    dt_ms: float = 1.0
    seed: int = 0
    synapses: str | None = None
    """File in which synapses are kept (keeping.py), beside the brain's own; None: they are drawn."""

    def __post_init__(self) -> None:
        if not self.populations:
            raise ConfigError("populations is empty; name at least one, as in cortex: {size: 1000}")
        if not self.dt_ms > 0:
            raise ConfigError(f"dt_ms is {self.dt_ms}; it must be greater than 0")
        for name, population in self.populations.items():
            _check_population(name, population, self.dt_ms)
        for number, projection in enumerate(self.projections):
            self._check_projection(number, projection)
        for name in self.populations:
            self._check_ring(name)

    def delay_steps(self, projection: ProjectionConfig) -> tuple[int, int]:
        """The shortest and longest delay in steps."""
        low, high = projection.delays_ms
        return round(low / self.dt_ms), round(high / self.dt_ms)

    def depth(self, name: str) -> int:
        """Steps that what is sent to a population may be under way."""
        return max((self.delay_steps(one)[1] for one in self.projections if one.target == name), default=1)

    def _check_projection(self, number: int, projection: ProjectionConfig) -> None:
        where = f"projections[{number}] ({projection.title})"
        for end in ("source", "target"):
            if getattr(projection, end) not in self.populations:
                message = unknown_name(f"population in {where}.{end}", getattr(projection, end), self.populations)
                raise ConfigError(message)
        size = self.populations[projection.source].size
        others = size - (projection.source == projection.target)
        if projection.mixed and self.populations[projection.target].receptor.channels > 1:
            raise ConfigError(f"{where}: mixed weights have no channel among conductances; take pulses or currents")
        if self.synapses is None and projection.fan_in != "all" and not 1 <= projection.fan_in <= others:
            raise ConfigError(
                f"{where}: fan_in is {projection.fan_in}; {projection.source} has {others} other neurons to draw from,"
                f" so it must lie in 1 to {others}"
            )
        low, high = projection.delays_ms
        if low < self.dt_ms:
            raise ConfigError(
                f"{where}: delay_ms {low:g} is shorter than dt_ms {self.dt_ms:g}; a spike takes at least one step:"
                f" lengthen the delay or shorten dt_ms"
            )
        if high < low:
            raise ConfigError(f"{where}: delay_ms runs from {low:g} down to {high:g}; write the shorter one first")

    def _check_ring(self, name: str) -> None:
        population = self.populations[name]
        room = self.depth(name) * population.receptor.channels * population.size
        if room >= LARGEST_RING:
            raise ConfigError(
                f"populations.{name}: {self.depth(name)} steps of delay times {population.size} neurons are more than"
                f" {LARGEST_RING} places; shorten its delays or split it"
            )


def read_brain(source: Path | str | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> BrainConfig:
    """A network from a YAML file or a mapping; `overrides` replace top-level keys. Raises ConfigError."""
    values = dict(_load(Path(source)) if isinstance(source, Path | str) else source) | dict(overrides or {})
    _refuse(values, [*_OWN, "neuron", "receptor", "drive"], "configuration")
    if isinstance(source, Path | str) and isinstance(values.get("synapses"), str):
        values["synapses"] = str(Path(source).parent / values["synapses"])
    shared: dict[str, Any] = {name: values.pop(name) for name in ("neuron", "receptor", "drive") if name in values}
    for name, kind, form in (("populations", Mapping, "{name: {size: 1000}}"), ("projections", list, "a list")):
        if not isinstance(values.setdefault(name, [] if kind is list else None), kind):
            raise ConfigError(f"{name} is {values[name]!r}, expected {form}")
    populations = {str(name): _population(str(name), one, shared) for name, one in values.pop("populations").items()}
    projections = [
        _built(ProjectionConfig, one, f"projections[{number}]") for number, one in enumerate(values.pop("projections"))
    ]
    return _built(BrainConfig, {**values, "populations": populations, "projections": projections}, "configuration")


def _load(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, expected populations and projections")
    return values


def _population(name: str, values: Any, shared: Mapping[str, Any]) -> PopulationConfig:
    where = f"populations.{name}"
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is {values!r}, expected at least its size, as in {{size: 1000}}")
    given = {**shared, **values}
    drive = given.get("drive", {})
    if not isinstance(drive, Mapping):
        raise ConfigError(f"{where}.drive is {drive!r}, expected constant: {{…}} and noise: {{…}}")
    _refuse(drive, DRIVES, f"{where}.drive")
    given["drive"] = {kind: _built(Drive, one, f"{where}.drive.{kind}") for kind, one in drive.items()}
    for key, table in (("neuron", NEURONS), ("receptor", RECEPTORS)):
        if key in given:
            given[key] = _of_kind(given[key], table, f"{where}.{key}")
    return _built(PopulationConfig, given, where)


def _of_kind(values: Any, table: Mapping[str, type[Any]], where: str) -> Any:
    if not isinstance(values, Mapping) or "kind" not in values:
        raise ConfigError(f"{where} is {values!r}, expected a kind, one of {', '.join(sorted(table))}")
    rest = dict(values)
    kind = str(rest.pop("kind"))
    if kind not in table:
        raise ConfigError(unknown_name(f"kind in {where}", kind, table))
    return _built(table[kind], rest, where)


def _built(cls: type[T], values: Any, where: str) -> T:
    """A dataclass from plain values, each checked against its type."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is {values!r}, expected keys such as {fields(cls)[0].name}")  # type: ignore[arg-type]
    _refuse(values, [entry.name for entry in fields(cls)], where)  # type: ignore[arg-type]
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([where, *(str(part) for part in first["loc"])])
        cause = first.get("ctx", {}).get("error")
        raise ConfigError(str(cause) if isinstance(cause, ConfigError) else f"{key}: {first['msg']}") from error


def _refuse(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise ConfigError(unknown_name(f"key in {where}", str(key), known))


def _check_population(name: str, population: PopulationConfig, dt_ms: float) -> None:
    where = f"populations.{name}"
    if population.size < 1:
        raise ConfigError(f"{where}: size is {population.size}; a population has at least one neuron")
    if population.winners is not None and not 1 <= population.winners <= population.size:
        raise ConfigError(f"{where}: winners is {population.winners}; it must lie in 1 to {population.size}")
    if not 0 <= refractory_steps(population.neuron, dt_ms) <= 255:
        raise ConfigError(
            f"{where}: refractory_ms {population.neuron.refractory_ms:g} is more than 255 steps of {dt_ms:g} ms"
            " or less than none"
        )
