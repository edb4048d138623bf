"""A brain as a NIR graph: populations as LIF, adaptation as a leaky integrator fed back, projections as matrices.

A step of ours, with alpha = exp(-dt / tau), rho = exp(-dt / tau_a), sigma = exp(-dt / tau_s), and NIR's primitives
solved exactly over a step of dt in which what flows in is held and a spike is 1:

    ours                                                 NIR
    u = alpha v + (1 - alpha) i + j,  z,  v = u - theta z  LIF: v_leak = the neuron's own i, r = 1 / (1 - alpha)
    theta + beta w,  w = rho w + z                         LI of its spikes with r = 1 / (1 - rho), and back by a Scale
                                                           of -beta (rho - alpha) / rho; and its spikes, back by a
                                                           Scale of -beta alpha / rho
    s = sigma s + arrivals,  i = s                         LI before a LIF of r = 1, with r = 1 / (1 - sigma)
    a delay of d steps                                     Delay of d dt before the matrix

A threshold that rises by beta w is a membrane that lies beta w lower: u - beta w obeys the LIF's equation with the two
feedbacks in the table, so the spikes are the same to rounding, not nearly. Every loop takes one step. Time constants
and delays are in seconds, potentials in mV. What NIR cannot say stands in the metadata: that a spike subtracts the
threshold (NIR's LIF goes to v_reset, here 0), refractoriness, winners, noise, plasticity, dt, and `brain`, the whole
configuration as JSON. NIR has nothing for conductances or Izhikevich's neuron: those are refused.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from pragnosia.errors import ConfigError
from pragnosia.spiking.keeping import written
from pragnosia.spiking.neurons import LIFA, Izhikevich
from pragnosia.spiking.nir_graph import Graph, Node, Sparse, write_graph
from pragnosia.spiking.regions import Brain, Projection, Region
from pragnosia.spiking.synapses import Conductances, Currents

MEANT = (
    "one step of dt: every LIF and LI solved exactly with its input held, a spike is 1 in its step; a spike subtracts"
    " v_threshold from the membrane (v_reset is not used); of loops without a Delay each takes one step"
)


def export_brain(brain: Brain, path: Path, *, drive: str) -> Graph:
    """Write a brain as built under `drive` to a NIR file. Raises ConfigError for what NIR cannot say."""
    graph = as_graph(brain, drive=drive)
    write_graph(path, graph)
    return graph


def as_graph(brain: Brain, *, drive: str, ends: bool = True) -> Graph:
    """The graph, with `ends` inputs and outputs. Raises ConfigError for what NIR has no primitive for."""
    making = _Making(brain)
    for region in brain.regions:
        making.population(region)
    for number, one in enumerate(brain.projections):
        making.projection(number, one)
    if ends:
        making.ends()
    metadata = {
        "made_by": "pragnosia",
        "dt": brain.config.dt_ms / 1000,
        "discretisation": MEANT,
        "reset": "subtract",
        "drive": drive,
        "brain": json.dumps({**written(brain.config), "synapses": None}),
    }
    return Graph(making.nodes, making.edges, metadata)


class _Making:
    """A graph on its way."""

    def __init__(self, brain: Brain) -> None:
        self.brain, self.dt_ms = brain, brain.config.dt_ms
        self.nodes: dict[str, Node] = {}
        self.edges: list[tuple[str, str]] = []
        self.named: dict[str, str] = {}
        """Node of each population."""
        self.into: dict[str, str] = {}
        """Node that its arrivals enter: itself, or what filters them."""

    def add(self, name: str, node: Node) -> str:
        """Put in a node; its name, made such that every simulator takes it and there is one of it."""
        plain = base = re.sub(r"\W+", "_", name).strip("_") or "node"
        number = 2
        while plain in self.nodes:
            plain, number = f"{base}_{number}", number + 1
        self.nodes[plain] = node
        return plain

    def population(self, region: Region) -> None:
        """LIF, what adapts it and what filters its arrivals."""
        config, size, neuron = region.config, region.config.size, region.config.neuron
        where = f"population {region.name!r}"
        if isinstance(neuron, Izhikevich):
            raise ConfigError(
                f"{where} has Izhikevich's neurons, for which NIR has no primitive; lif and lifa can be written"
            )
        if isinstance(config.receptor, Conductances):
            raise ConfigError(
                f"{where} receives by conductances, for which NIR has no primitive; pulses and currents can"
            )
        filtered = config.receptor if isinstance(config.receptor, Currents) else None
        r = 1.0 if filtered else 1 / _share(self.dt_ms, neuron.tau_ms)
        metadata: dict[str, Any] = {"population": region.name, "reset": "subtract"}
        metadata["refractory"] = neuron.refractory_ms / 1000
        metadata |= {} if config.winners is None else {"winners": config.winners}
        metadata |= {"noise": region.noise_mv} if region.noise_mv else {}
        values = {
            "tau": np.full(size, neuron.tau_ms / 1000),
            "r": np.full(size, r),
            "v_leak": region.bias.numpy().astype(np.float32),
            "v_threshold": np.full(size, float(neuron.threshold_mv)),
            "v_reset": np.zeros(size),
        }
        name = self.named[region.name] = self.into[region.name] = self.add(
            region.name, Node("LIF", values, None, metadata)
        )
        if isinstance(neuron, LIFA):
            self._adaptation(name, neuron, size, jump=r * _share(self.dt_ms, neuron.tau_ms))
        if filtered:
            synapse = self._leaky(f"{name}_synapse", filtered.tau_ms, size)
            self.into[region.name] = synapse
            self.edges.append((synapse, name))

    def _adaptation(self, name: str, neuron: LIFA, size: int, *, jump: float) -> None:
        """The two feedbacks; `jump` is what 1 of input moves the membrane by [mV]."""
        alpha, rho = math.exp(-self.dt_ms / neuron.tau_ms), math.exp(-self.dt_ms / neuron.tau_adaptation_ms)
        slow = self._leaky(f"{name}_adaptation", neuron.tau_adaptation_ms, size)
        scales = {
            slow: -neuron.adaptation_mv * (rho - alpha) / rho / jump,
            name: -neuron.adaptation_mv * alpha / rho / jump,
        }
        self.edges.append((name, slow))
        for source, scale in scales.items():
            back = self.add(f"{source}_back", Node("Scale", {"scale": np.full(size, scale)}))
            self.edges += [(source, back), (back, name)]

    def _leaky(self, name: str, tau_ms: float, size: int) -> str:
        return self.add(name, leaky(self.dt_ms, tau_ms, size))

    def projection(self, number: int, one: Projection) -> None:
        """A Delay and a Linear for each delay there is."""
        config = self.brain.config.populations
        source, target = config[one.config.source], config[one.config.target]
        synapses = one.synapses
        slots = synapses.slots.long().numpy()
        delay, row = slots // target.size, slots % target.size
        column, weight = synapses.sources.numpy(), synapses.strengths.expand(synapses.count).numpy()
        for steps in np.unique(delay).tolist():
            of = delay == steps
            held = self.add(
                f"projection_{number}_delay_{steps}",
                Node("Delay", {"delay": np.full(source.size, steps * self.dt_ms / 1000)}),
            )
            matrix = Sparse((target.size, source.size), row[of], column[of], weight[of])
            metadata = {"projection": number, "title": one.config.title, **_apart(matrix)}
            if one.config.plasticity:
                metadata["plasticity"] = one.config.plasticity
            linear = self.add(f"projection_{number}_weights_{steps}", Node("Linear", {}, matrix, metadata))
            names = (self.named[one.config.source], held, linear, self.into[one.config.target])
            self.edges += [names[0:2], names[1:3], names[2:4]]

    def ends(self) -> None:
        """Inputs (currents in mV) and outputs: populations that nothing leads to, and from."""
        afferent = [one for one in self.brain.config.projections if one.role == "afferent" and one.source != one.target]
        names = list(self.named)
        first = [name for name in names if name not in {one.target for one in afferent}] or names[:1]
        last = [name for name in names if name not in {one.source for one in afferent}] or names[-1:]
        for name in first:
            region = self.brain.region(name)
            size, r = region.config.size, float(self.nodes[self.named[name]].values["r"][0])
            node = self.add("input" if len(first) == 1 else f"input_{name}", Node("Input", {"shape": np.array([size])}))
            scale = self.add(f"{node}_scale", Node("Scale", {"scale": np.full(size, 1 / r)}))
            self.edges += [(node, scale), (scale, self.named[name])]
        for name in last:
            size = self.brain.region(name).config.size
            node = self.add(
                "output" if len(last) == 1 else f"output_{name}", Node("Output", {"shape": np.array([size])})
            )
            self.edges.append((self.named[name], node))


def leaky(dt_ms: float, tau_ms: float, size: int) -> Node:
    """Leaky integrators to which a spike adds 1."""
    values = {"tau": np.full(size, tau_ms / 1000), "r": np.full(size, 1 / _share(dt_ms, tau_ms))}
    return Node("LI", values | {"v_leak": np.zeros(size)})


def _share(dt_ms: float, tau_ms: float) -> float:
    """1 - exp(-dt / tau)."""
    return -math.expm1(-dt_ms / tau_ms)


def _apart(matrix: Sparse) -> dict[str, Any]:
    """Synapses that a dense matrix would hide: several of one pair, which add up in it, and weights of 0."""
    place = matrix.row * matrix.shape[1] + matrix.column
    _, inverse, counts = np.unique(place, return_inverse=True, return_counts=True)
    hidden = (counts[inverse] > 1) | (matrix.value == 0)
    if not hidden.any():
        return {}
    return {
        "apart_target": matrix.row[hidden].astype(np.int32),
        "apart_source": matrix.column[hidden].astype(np.int32),
        "apart_weight": matrix.value[hidden].astype(np.float32),
    }
