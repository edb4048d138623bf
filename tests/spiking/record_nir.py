"""Writes brain_nir.json: brain.nir as Brian2 runs it, read by the nir library. Needs both, and nothing of ours.

    python tests/spiking/record_nir.py

Every primitive is what NIR says it is, solved as the file's metadata says it is meant: exactly over a step of dt with
what flows in held; a spike is 1 in its step and subtracts the threshold. Brian2 hands on spikes after the thresholds
of a step, so that a delay of d is d - 1 steps of its own, and its refractoriness counts the step of the spike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import brian2 as b2
import nir
import numpy as np

HERE = Path(__file__).parent
STEPS, WATCHED = 250, 3
LEAKY = "dv/dt = (v_leak + r * flow - v) / tau : 1\ntau : second\nr : 1\nv_leak : 1\nflow : 1"


class Network:
    """A graph on its way into Brian2."""

    def __init__(self, graph: Any) -> None:
        self.graph, self.made, self.groups = graph, [], {}
        self.dt = float(graph.metadata["dt"]) * b2.second

    def group(self, name: str, node: Any) -> None:
        """A LIF, or an LI, which is updated before them."""
        fires = isinstance(node, nir.LIF)
        kind = {}
        if fires:
            rest = float(node.metadata["refractory"]) * b2.second + self.dt
            kind = {"threshold": "v > v_threshold", "reset": "v -= v_threshold", "refractory": rest}
        text = LEAKY + ("\nv_threshold : 1" if fires else "")
        one = b2.NeuronGroup(len(node.tau), text, method="exact", order=int(fires), **kind)
        one.tau, one.r, one.v_leak = node.tau * b2.second, node.r, node.v_leak
        if fires:
            one.v_threshold = node.v_threshold
        # what flowed in was held for one step
        one.run_regularly("flow = 0", when="after_groups")
        self.groups[name] = one
        self.made.append(one)

    def wire(self, source: str, name: str) -> None:
        """From a group by whatever follows to the next one."""
        matrix, delay = None, None
        while name not in self.groups:
            node = self.graph.nodes[name]
            if isinstance(node, nir.Delay):
                delay = node.delay
            elif isinstance(node, nir.Linear):
                matrix = node.weight
            elif isinstance(node, nir.Scale):
                matrix = np.diag(node.scale)
            elif isinstance(node, nir.Output):
                return
            (name,) = [end for begin, end in self.graph.edges if begin == name]
        matrix = np.eye(len(self.groups[source])) if matrix is None else np.asarray(matrix, float)
        if isinstance(self.graph.nodes[source], nir.LI):
            self.made.append(self.steady(self.groups[source], self.groups[name], matrix))
            return
        target, of = matrix.nonzero()
        one = b2.Synapses(self.groups[source], self.groups[name], "x : 1", on_pre="flow_post += x")
        one.connect(i=of, j=target)
        one.x = matrix[target, of]
        if delay is not None:
            one.delay = delay[of] * b2.second - self.dt
        self.made.append(one)

    def steady(self, begin: Any, end: Any, matrix: np.ndarray) -> Any:
        """What an LI hands on in every step, between its update and that of the LIF."""

        @b2.network_operation(when="groups", order=0.5, dt=self.dt)
        def flows() -> None:
            end.flow_[:] = end.flow_[:] + matrix @ begin.v_[:]

        return flows


def main() -> None:
    """Read, run, write."""
    b2.prefs.codegen.target = "numpy"
    graph = nir.read(HERE / "brain.nir")
    net = Network(graph)
    b2.defaultclock.dt = net.dt
    for name, node in graph.nodes.items():
        if isinstance(node, (nir.LIF, nir.LI)):
            net.group(name, node)
    for source, target in graph.edges:
        if source in net.groups:
            net.wire(source, target)
    chance = np.random.default_rng(5)
    firing = {name: one for name, one in net.groups.items() if isinstance(graph.nodes[name], nir.LIF)}
    start = {name: chance.uniform(0, 15, len(one)) for name, one in firing.items()}
    for name, one in firing.items():
        one.v = start[name]
    spikes = {name: b2.SpikeMonitor(one) for name, one in firing.items()}
    traces = {
        name: b2.StateMonitor(one, "v", record=range(WATCHED), when="before_thresholds") for name, one in firing.items()
    }
    b2.Network(*net.made, *spikes.values(), *traces.values()).run(STEPS * net.dt)
    found = {
        name: {
            "start": start[name].tolist(),
            "spikes": sorted(
                [round(float(t / net.dt)), int(i)] for t, i in zip(spikes[name].t, spikes[name].i, strict=True)
            ),
            "potential": np.round(traces[name].v.T, 6).tolist(),
        }
        for name in firing
    }
    record = {"brian2": b2.__version__, "nir": nir.version, "steps": STEPS, "populations": found}
    (HERE / "brain_nir.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    print({name: len(one["spikes"]) for name, one in found.items()})


if __name__ == "__main__":
    main()
