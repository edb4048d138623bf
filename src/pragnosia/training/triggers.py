"""The triggers of a run: what it looks at between steps, and the change of structure that follows.

    floor       units that did less than a share of an even one, look after look  ->  they go
    gates       learned gates: of units that have closed, or are mostly open      ->  they go, or newborns
    overload    a unit does many times an even share                              ->  newborns beside it
    plateau     the loss stands still                                             ->  layers, or units

Looked at in this order, every so many steps: who goes first makes room in the budget. Nothing is looked at for a while
after a change. The rules are plasticity/triggers.py; whether the budget allows a change is upbringing.py's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.learning import Lesson
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex
from pragnosia.model.thalamus import unit_load
from pragnosia.plasticity.depth import deepen, deepened
from pragnosia.plasticity.gates import Gates, GatesConfig
from pragnosia.plasticity.growth import add_units, grown_config, units_of
from pragnosia.plasticity.origin import Change
from pragnosia.plasticity.pruning import keep_units
from pragnosia.plasticity.triggers import Plateau, PlateauConfig, gradient_per_parameter, idle, overloaded


@dataclass(frozen=True, kw_only=True)
class PlasticityConfig:
    """When a model changes its structure by itself while it is trained, and within what bounds."""

    max_parameters: float
    """Never more than so many."""
    max_operations: float | None = None
    """Of learning in the whole run, never more; None: no bound."""
    every: int = 50
    """Steps between two looks."""
    rest: int | None = None
    """Steps after a change in which nothing is looked at; None: `optimiser.newborn_steps`, until newborns are awake."""
    plateau: PlateauConfig | None = None
    """When the loss stands still, `grow` grows."""
    grow: Literal["layers", "units"] = "layers"
    layers: int = 1
    """At a time."""
    units: int = 1
    """At a time, in every sparse layer."""
    overload: float | None = None
    """A unit that does so many times an even share gets newborns beside it."""
    floor: float | None = None
    """Units that do less than this share of an even one go, ..."""
    patience: int = 3
    """... after so many looks in a row."""
    gates: GatesConfig | None = None
    """Learned gates: whose close goes, where most are open units are added."""

    def __post_init__(self) -> None:
        for key in ("max_parameters", "every", "layers", "units", "patience"):
            if not getattr(self, key) >= 1:
                raise ConfigError(f"plasticity.{key} is {getattr(self, key)}; it must be at least 1")
        if self.rest is not None and self.rest < 0:
            raise ConfigError(f"plasticity.rest is {self.rest}; it must not be negative")
        if self.max_operations is not None and not self.max_operations > 0:
            raise ConfigError(f"plasticity.max_operations is {self.max_operations}; it must be greater than 0")
        if self.overload is not None and not self.overload > 1:
            raise ConfigError(f"plasticity.overload is {self.overload}; an even share is 1, so give more")
        if self.floor is not None and not 0 < self.floor < 1:
            raise ConfigError(f"plasticity.floor is {self.floor}; an even share is 1, so give less, and more than 0")
        if self.plateau is None and self.overload is None and self.floor is None and self.gates is None:
            raise ConfigError("plasticity has nothing to act upon; give plateau, overload, floor or gates")

    def check(self, shape: PragnosiaConfig) -> None:
        """Raise ConfigError for a model whose units cannot change in number where they would have to."""
        asked = (self.overload, self.floor, self.gates, self.plateau if self.grow == "units" else None)
        if any(one is not None for one in asked):
            units_of(shape)


@dataclass(frozen=True)
class Proposal:
    """A change that would be made, and the shape it would lead to."""

    what: str
    reason: str
    detail: str
    shape: PragnosiaConfig
    verb: Callable[[Cortex], Change]
    births: int = 0
    deaths: int = 0


@final
class Triggers:
    """What one run has seen since its model last changed."""

    def __init__(self, config: PlasticityConfig, seed: int, newborn_steps: int = 0) -> None:
        self.config, self.seed = config, seed
        self.rest = newborn_steps if config.rest is None else config.rest
        self.plateau = None if config.plateau is None else Plateau(config.plateau)
        self.gates = None if config.gates is None else Gates(config.gates)
        self.rested = 0
        """Steps since the last change."""
        self.loads: dict[int, Tensor] = {}
        """Since the last look, of each sparse layer: tokens that woke each unit."""
        self.idle: dict[int, dict[int, int]] = {}
        """Of each sparse layer, the units that did too little, and for how many looks in a row."""

    def learned(self, loss: float, lessons: Sequence[Lesson], model: Any = None) -> None:
        """A step has been made; gates of `model` are pressed."""
        self.rested += 1
        if self.rested <= self.rest:
            return
        if self.gates is not None:
            self.gates.press(model)
        if self.plateau is not None:
            self.plateau.add(loss)
        if self.config.overload is None and self.config.floor is None and self.gates is None:
            return
        for lesson in lessons:
            for layer, routing in enumerate(lesson.routings):
                if routing is not None and routing.routes:
                    load = unit_load(routing).cpu()
                    self.loads[layer] = self.loads[layer] + load if layer in self.loads else load

    def changed(self) -> None:
        """The model has another structure: what was seen before does not compare."""
        self.rested, self.loads, self.idle = 0, {}, {}
        if self.plateau is not None:
            self.plateau.clear()
        if self.gates is not None:
            self.gates.clear()

    def look(self, step: int, model: Any) -> list[Proposal]:
        """What calls for a change after so many steps, the most pressing first; mostly nothing.

        Raises ConfigError for a change that the model cannot make.
        """
        if self.rested <= self.rest or step % self.config.every:
            return []
        found = [self._floor(model.config), *self._gates(model), self._overload(model), self._plateau(model)]
        self.loads = {}
        return [proposal for proposal in found if proposal is not None]

    def state(self) -> dict[str, Any]:
        """For a checkpoint: JSON."""
        return {
            "rested": self.rested,
            "losses": [] if self.plateau is None else self.plateau.losses,
            "loads": {str(layer): load.tolist() for layer, load in self.loads.items()},
            "idle": {str(layer): sorted(looks.items()) for layer, looks in self.idle.items()},
            "open": {} if self.gates is None else {str(layer): full for layer, full in self.gates.full.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` said."""
        self.rested = int(state["rested"])
        self.loads = {int(layer): torch.tensor(load) for layer, load in state["loads"].items()}
        self.idle = {int(layer): {int(u): int(n) for u, n in looks} for layer, looks in state["idle"].items()}
        if self.plateau is not None:
            self.plateau.losses = [float(loss) for loss in state["losses"]]
        if self.gates is not None:
            self.gates.full = {int(layer): float(full) for layer, full in state.get("open", {}).items()}

    def _floor(self, shape: PragnosiaConfig) -> Proposal | None:
        """Units that are idle for long go; of every layer as many, for all have as many."""
        share = self.config.floor
        if share is None or not self.loads:
            return None
        for layer, units in idle(self.loads, share).items():
            before = self.idle.get(layer, {})
            self.idle[layer] = {unit: before.get(unit, 0) + 1 for unit in units}
        long = {
            layer: [unit for unit, looks in units.items() if looks >= self.config.patience]
            for layer, units in self.idle.items()
        }
        return _removal(shape, long, f"floor: idle for {self.config.patience} looks, below {share:g} of an even share")

    def _gates(self, model: Any) -> list[Proposal]:
        """Units whose gates have closed go; where most are open, newborns stand beside them."""
        if self.gates is None or self.config.gates is None:
            return []
        reason = f"gates: closed, below {self.config.gates.closed:g}"
        found = [_removal(model.config, self.gates.closed(model), reason)]
        crowd = self.gates.crowd(model)
        if crowd is not None:
            found.append(self._units(model.config, crowd.reason, crowd.unit))
        return [proposal for proposal in found if proposal is not None]

    def _overload(self, model: Any) -> Proposal | None:
        """Newborns begin as copies of the busiest units of the lobe that has an overloaded one."""
        if self.config.overload is None or not self.loads:
            return None
        found = overloaded(self.loads, self.config.overload)
        if found is None:
            return None
        return self._units(model.config, found.reason, found.unit)

    def _units(self, shape: PragnosiaConfig, reason: str, unit: int) -> Proposal:
        """More units in the lobe that `unit` stands in."""
        organ, count = units_of(shape), self.config.units
        names = list(organ.lobes or {})
        number, lobe = next((n, lobe) for n, lobe in enumerate(lobes_of(organ)) if unit in lobe)
        parents = None
        if self.loads:
            parents = []
            for layer in shape.sparse_layers:
                own = sorted(lobe, key=lambda each: -float(self.loads[layer][each]))
                parents.append([own[nth % len(own)] for nth in range(count)])
        sizes = {
            name: len(one) + (name == names[number]) * count for name, one in zip(names, lobes_of(organ), strict=True)
        }
        return Proposal(
            what="add_units",
            reason=reason,
            detail=f"{organ.num_units} -> {organ.num_units + count} units a layer",
            shape=grown_config(shape, sizes),
            verb=lambda model: add_units(model, {names[number]: count}, parents=parents, seed=self.seed),
            births=count * len(shape.sparse_layers),
        )

    def _plateau(self, model: Any) -> Proposal | None:
        """More layers behind the one whose parameters have the largest gradients, or more units."""
        reason = None if self.plateau is None else self.plateau.reason
        if reason is None:
            return None
        shape: PragnosiaConfig = model.config
        if self.config.grow == "units":
            return self._units(shape, reason, 0)
        count = self.config.layers
        slopes = gradient_per_parameter(model.model.layers)
        able = [layer for layer, kind in enumerate(shape.feed_forwards or ()) if kind != "memory"]
        if not able:
            raise ConfigError(
                "every layer recalls from the one long-term memory, so none could be copied and be silent"
            )
        place = max(able, key=lambda layer: slopes[layer])
        after, now = [place] * count, deepened(shape, count, [place] * count)
        units = 0 if now.units is None else now.units.num_units
        return Proposal(
            what="deepen",
            reason=f"{reason}; layer {place} has the largest gradient per parameter, {slopes[place]:.2g}",
            detail=f"{shape.num_hidden_layers} -> {now.num_hidden_layers} layers",
            shape=now,
            verb=lambda cortex: deepen(cortex, count, after=after, seed=self.seed),
            births=units * (len(now.sparse_layers) - len(shape.sparse_layers)),
        )


def _removal(shape: PragnosiaConfig, long: Mapping[int, Sequence[int]], reason: str) -> Proposal | None:
    """Of the units that may go in each layer, so many as may go in all: every layer has as many, in every lobe."""
    organ = units_of(shape)
    gone: dict[int, list[int]] = {layer: [] for layer in shape.sparse_layers}
    spare = organ.num_units - (organ.thalamus.max_awake or organ.thalamus.num_awake)
    for lobe in lobes_of(organ):
        own = {layer: [unit for unit in long.get(layer, ()) if unit in lobe] for layer in gone}
        count = min(spare, len(lobe) - 1, *map(len, own.values()))
        spare -= count
        for layer in gone:
            gone[layer] += own[layer][:count]
    deaths = sum(map(len, gone.values()))
    if not deaths:
        return None
    kept = [[unit for unit in range(organ.num_units) if unit not in gone[layer]] for layer in gone]
    left = {
        label: sum(unit in lobe for unit in kept[0])
        for label, lobe in zip(organ.lobes or {}, lobes_of(organ), strict=True)
    }
    return Proposal(
        what="remove_units",
        reason=reason,
        detail=f"{organ.num_units} -> {len(kept[0])} units a layer",
        shape=grown_config(shape, left),
        verb=lambda model: keep_units(model, kept),
        deaths=deaths,
    )


def lobes_of(organ: Any) -> list[range]:
    """The units of each lobe, side by side."""
    lobes, first = [], 0
    for size in (organ.lobes or {}).values():
        lobes.append(range(first, first + size))
        first += size
    return lobes
