"""A NIR graph as a brain: the way back of nir_export.py, and what other simulators write as far as a brain can be it.

    LIF, CubaLIF      a population; what flows into it by a matrix is a projection, from itself too
    LI                before a LIF: what filters its arrivals; from a LIF back to itself: its adaptation
    Linear, Affine    synapses where it is not 0; a bias is a current of the neurons' own
    Delay             whole steps of dt; no delay is one step, than which nothing of ours is faster
    Scale             factors of what passes
    Input             a current from outside; before a matrix, a population that fires where it is given 1
    Output, Identity  nothing

Numbers are read as nir_export.py says they are meant, whatever solver the writer had; dt is the file's, or asked for.
NIR's LIF goes to v_reset when it fires, ours takes the threshold off: v_reset must be 0, and what was above the
threshold stays. A brain has one time constant and threshold for all neurons of a population.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pragnosia.errors import CheckpointError
from pragnosia.spiking.configuration import BrainConfig, read_brain
from pragnosia.spiking.keeping import keep
from pragnosia.spiking.nir_graph import Array, Graph, Sparse, read_graph
from pragnosia.spiking.nir_ways import FIRING, Way, ways_into
from pragnosia.spiking.synapses import Synapses
from pragnosia.spiking.wiring import laid_out

ADAPTATION_ERROR = 1e-5
"""By how much the two feedbacks of an adapting neuron may miss each other."""


@dataclass(frozen=True)
class Imported:
    """A brain that was read, ready to be kept."""

    config: BrainConfig
    synapses: dict[int, Synapses]
    biases: dict[tuple[str, str], torch.Tensor]
    notes: list[str] = field(default_factory=list)
    """What is not as the writer may have meant it."""

    def save(self, folder: Path) -> None:
        """Write a brain folder's two files."""
        keep(folder, self.config, self.synapses, self.biases)


def import_brain(path: Path, *, dt_ms: float | None = None) -> Imported:
    """Read a NIR file. Raises CheckpointError for a node or a wiring that a brain has no counterpart for."""
    graph = read_graph(path)
    if "language_model" in graph.metadata:
        raise CheckpointError(
            f"{path} is a spiking language model, whose tokens and logits have no place in a brain; run the model"
            " directory that it was written from"
        )
    told = _told(graph)
    meant = _number(1000 * float(graph.metadata["dt"])) if "dt" in graph.metadata else None
    if dt_ms is not None and meant is not None and dt_ms != meant:
        raise CheckpointError(
            f"{path} was written for steps of {meant:g} ms, for which alone its numbers hold, not for {dt_ms:g}; leave"
            " --dt-ms out"
        )
    dt_ms = dt_ms or meant or 1.0
    reading = _Reading(path, graph, dt_ms, told)
    return reading.brain()


def _told(graph: Graph) -> dict[str, Any]:
    """The configuration in the metadata of a graph of ours."""
    try:
        values = json.loads(graph.metadata.get("brain", "{}"))
    except (TypeError, json.JSONDecodeError):
        return {}
    return values if isinstance(values, dict) else {}


@dataclass
class _Wire:
    """The synapses of a projection as they are found."""

    source: str
    target: str
    row: list[Array] = field(default_factory=list)
    column: list[Array] = field(default_factory=list)
    delay: list[Array] = field(default_factory=list)
    weight: list[Array] = field(default_factory=list)


class _Reading:
    """A graph being read."""

    def __init__(self, path: Path, graph: Graph, dt_ms: float, told: dict[str, Any]) -> None:
        self.path, self.graph, self.dt_ms, self.told = path, graph, dt_ms, told
        self.drive = str(graph.metadata.get("drive", "constant"))
        self.populations: dict[str, dict[str, Any]] = {}
        self.names: dict[str, str] = {}
        self.wires: dict[Any, _Wire] = {}
        self.biases: dict[tuple[str, str], torch.Tensor] = {}
        self.notes: list[str] = []

    def brain(self) -> Imported:
        """All of it."""
        firing = [name for name, node in self.graph.nodes.items() if node.kind in FIRING]
        if not firing:
            raise CheckpointError(f"{self.path} has no LIF or CubaLIF node, so there is nothing in it that fires")
        for name in self._in_order(firing):
            self.names[name] = str(self.graph.nodes[name].metadata.get("population", name))
        for name in self.names:
            self._population(name)
        projections, synapses = self._projections()
        values = {
            "dt_ms": self.dt_ms,
            "seed": int(self.told.get("seed", 0)),
            "synapses": str(self.path),  # stands for the file that will be kept
            "populations": self.populations,
            "projections": projections,
        }
        config = read_brain(values)
        if self.graph.metadata.get("reset") != "subtract":
            self.notes.append("a spike takes the threshold off the membrane, where the graph sets it to v_reset")
        laid = {number: laid_out(config, number, *parts) for number, parts in synapses.items()}
        return Imported(config, laid, self.biases, self.notes)

    def _in_order(self, firing: list[str]) -> list[str]:
        """As the file's configuration has them; HDF5 keeps names by alphabet."""
        order = list(self.told.get("populations", {}))
        place = {name: number for number, name in enumerate(order)}
        return sorted(
            firing, key=lambda one: place.get(str(self.graph.nodes[one].metadata.get("population", one)), 1e9)
        )

    def _population(self, name: str) -> None:
        node, title = self.graph.nodes[name], self.names[name]
        tau_ms = 1000 * self._one(name, "tau_mem" if node.kind == "CubaLIF" else "tau")
        threshold, r = self._one(name, "v_threshold"), self._one(name, "r")
        if "v_reset" in node.values and np.any(node.values["v_reset"] != 0):
            raise CheckpointError(
                f"{self.path}: {name!r} resets to v_reset other than 0; a neuron here takes its threshold off when it"
                " fires, so only v_reset 0 can be read"
            )
        neuron: dict[str, Any] = {"kind": "lif", "tau_ms": _number(tau_ms), "threshold_mv": _number(threshold)}
        neuron["refractory_ms"] = _number(1000 * float(node.metadata.get("refractory", 0.0)))
        jump = r * -math.expm1(-self.dt_ms / neuron["tau_ms"])
        jump = 1.0 if abs(jump - 1) < 1e-9 else jump
        found = ways_into(self.path, self.graph, name)
        looped = [one for one in found if one.source == name and one.matrix is None and not one.delayed]
        if looped:
            neuron |= self._adaptation(name, looped, jump, neuron["tau_ms"])
        bias = node.values["v_leak"].astype(np.float64)
        taus = set()
        for one in found:
            if one in looped:
                continue
            bias = bias + r * one.bias
            if self.graph.nodes[one.source].kind == "Input" and one.matrix is None:
                self._from_outside(name, one, r)
                continue
            taus.add(self._wire(name, one, r=r, jump=jump))
        if len(taus) > 1:
            raise CheckpointError(
                f"{self.path}: {name!r} is reached by ways that filter differently; a population has one receptor"
            )
        tau_s = next(iter(taus), None)
        receptor = {"kind": "pulses"} if tau_s is None else {"kind": "currents", "tau_ms": _number(1000 * tau_s)}
        told = self.told.get("populations", {}).get(title, {})
        kept = {key: told[key] for key in ("drive", "winners", "inhibition_mv") if key in told}
        self.populations[title] = {"size": len(bias), "neuron": neuron, "receptor": receptor, **kept}
        self.biases[title, self.drive] = torch.from_numpy(bias.astype(np.float32))

    def _one(self, name: str, key: str) -> float:
        """The value that all neurons of a node share."""
        values = self.graph.nodes[name].values.get(key)
        if values is None:
            raise CheckpointError(f"{self.path}: {name!r} has no {key}")
        if values.ndim != 1 or values.size == 0:
            raise CheckpointError(
                f"{self.path}: {name!r} has a {key} of shape {values.shape}; neurons here lie in a row"
            )
        if np.any(values != values.flat[0]):
            raise CheckpointError(f"{self.path}: {key} of {name!r} differs between neurons; a population here has one")
        return float(str(values.flat[0]))  # of single precision, its own digits

    def _adaptation(self, name: str, looped: list[Way], jump: float, tau_ms: float) -> dict[str, Any]:
        slow = [one for one in looped if one.tau is not None]
        fast = [one for one in looped if one.tau is None]
        said = f"{self.path}: {name!r} feeds back to itself other than an adapting threshold does (docs/spiking.md)"
        if len(slow) != 1 or len(fast) != 1:
            raise CheckpointError(said)
        tau_a = _number(1000 * float(str(slow[0].tau)))
        alpha, rho = math.exp(-self.dt_ms / tau_ms), math.exp(-self.dt_ms / tau_a)
        share = -math.expm1(-self.dt_ms / tau_a)
        slow_gain, fast_gain = (one.gain * jump for one in (slow[0], fast[0]))
        slow_gain = slow_gain * slow[0].r * share
        beta = float(np.atleast_1d(-fast_gain)[0]) * rho / alpha
        fits = np.allclose(fast_gain, -beta * alpha / rho, rtol=ADAPTATION_ERROR) and np.allclose(
            slow_gain, -beta * (rho - alpha) / rho, rtol=ADAPTATION_ERROR, atol=ADAPTATION_ERROR * abs(beta)
        )
        if not fits:
            raise CheckpointError(said)
        return {"kind": "lifa", "tau_adaptation_ms": tau_a, "adaptation_mv": _number(beta)}

    def _from_outside(self, name: str, one: Way, r: float) -> None:
        if one.tau is not None or not np.allclose(one.gain * r, 1, rtol=1e-6):
            raise CheckpointError(
                f"{self.path}: what enters {name!r} from {one.source!r} is filtered or scaled by"
                f" {np.ravel(one.gain * r)[0]:g}; a current from outside enters a population here as it is, in mV"
            )

    def _wire(self, name: str, one: Way, *, r: float, jump: float) -> float | None:
        """Synapses of one way; the time constant [s] of what filters it."""
        node = self.graph.nodes[name]
        tau, gain = one.tau, jump
        if node.kind == "CubaLIF":
            if tau is not None:
                raise CheckpointError(
                    f"{self.path}: {name!r} filters what LI has filtered already; a receptor has one filter"
                )
            if np.any(one.bias):
                raise CheckpointError(
                    f"{self.path}: {name!r} is given a bias that it filters; a brain's own currents are not"
                )
            tau = self._one(name, "tau_syn")
            gain = r * self._one(name, "w_in") * -math.expm1(-self.dt_ms / (1000 * tau))
        elif tau is not None:
            gain = r * one.r * -math.expm1(-self.dt_ms / (1000 * tau))
        gain = 1.0 if abs(gain - 1) < 1e-9 else gain
        source = self._source(one.source)
        size = len(node.values["v_leak"])
        matrix = one.matrix or Sparse.diagonal(np.ones(size))
        self._check_shape(name, one, matrix)
        number = one.metadata.get("projection")
        key = (int(number),) if number is not None else (source, self.names[name], len(self.wires))
        wire = self.wires.setdefault(key, _Wire(source, self.names[name]))
        row, column, value = one.synapses(matrix, gain)
        wire.row.append(row)
        wire.column.append(column)
        wire.weight.append(value)
        wire.delay.append(self._steps(one, name)[column] if one.delayed else np.ones(len(row), np.int64))
        return tau

    def _check_shape(self, name: str, one: Way, matrix: Sparse) -> None:
        node = self.graph.nodes[one.source]
        width = int(np.prod(node.values["shape"])) if node.kind == "Input" else len(node.values["v_leak"])
        expected = (len(self.graph.nodes[name].values["v_leak"]), width)
        if matrix.shape != expected:
            raise CheckpointError(
                f"{self.path}: the way from {one.source!r} to {name!r} has weights of {matrix.shape},"
                f" expected {expected}"
            )

    def _steps(self, one: Way, name: str) -> Array:
        """Delay of each source neuron in steps."""
        width = (one.matrix.shape[1] if one.matrix else len(self.graph.nodes[name].values["v_leak"]),)
        exact = np.broadcast_to(1000 * one.delay / self.dt_ms, width)
        steps = np.rint(exact).astype(np.int64)
        if np.any(abs(exact - steps) > 1e-4 * np.maximum(1, exact)):
            odd = float(1000 * np.ravel(one.delay)[np.argmax(abs(exact - steps)) % np.size(one.delay)])
            raise CheckpointError(
                f"{self.path}: a delay of {odd:g} ms before {name!r} is no whole number of steps of {self.dt_ms:g} ms;"
                " choose another --dt-ms"
            )
        least: Array = np.maximum(steps, 1)
        return least

    def _source(self, name: str) -> str:
        """The population a way begins at; an Input before a matrix becomes one."""
        if name in self.names:
            return self.names[name]
        size = int(np.prod(self.graph.nodes[name].values["shape"]))
        # it forgets within a step, so that 1 makes it fire and 0 does not
        neuron = {"kind": "lif", "tau_ms": self.dt_ms / 40, "threshold_mv": 0.5, "refractory_ms": 0}
        self.populations.setdefault(name, {"size": size, "neuron": neuron, "receptor": {"kind": "pulses"}})
        note = f"{name!r} became a population that fires in a step in which it is given more than 0.5 mV"
        self.notes += [] if note in self.notes else [note]
        return name

    def _projections(self) -> tuple[list[dict[str, Any]], dict[int, tuple[Array, ...]]]:
        told = self.told.get("projections", [])
        found: list[dict[str, Any]] = []
        synapses: dict[int, tuple[Array, ...]] = {}
        for number, key in enumerate(sorted(self.wires, key=lambda key: (len(key), *map(str, key[1:]), key[0]))):
            wire = self.wires[key]
            known = told[key[0]] if len(key) == 1 and 0 <= key[0] < len(told) else {}
            known = known if (known.get("source"), known.get("target")) == (wire.source, wire.target) else {}
            row, column, delay, weight = (
                np.concatenate(part) for part in (wire.row, wire.column, wire.delay, wire.weight)
            )
            low, high = (int(delay.min()), int(delay.max())) if len(delay) else (1, 1)
            mean = float(np.abs(weight).mean()) if len(weight) else 0.0
            own = {
                "fan_in": math.ceil(len(row) / max(self.populations[wire.target]["size"], 1)),
                "weight": math.copysign(mean, float(weight.sum()) if len(weight) else 1.0),
                "role": "recurrent" if wire.source == wire.target else "afferent",
            }
            own |= {"source": wire.source, "target": wire.target}
            delays = {"delay_ms": [_number(steps * self.dt_ms) for steps in (low, high)]}
            found.append({**own, **known, **({} if self._holds(known, low, high) else delays)})
            synapses[number] = (column, row, delay, weight)
        return found, synapses

    def _holds(self, known: dict[str, Any], low: int, high: int) -> bool:
        """Whether the delays the configuration tells are those of the graph."""
        told = known.get("delay_ms")
        if told is None:
            return False
        first, last = told if isinstance(told, list) else (told, told)
        return bool(round(first / self.dt_ms) <= low and high <= round(last / self.dt_ms))


def _number(value: float) -> float:
    """Without what conversion between units left in the last digits."""
    return float(f"{value:.12g}")
