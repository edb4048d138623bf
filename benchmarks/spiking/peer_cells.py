"""A library's cell over all neurons, with propagation gathered from the synapses of who spiked, which none brings.

    python peer_cells.py NETWORK.npz STEPS HZ norse|snntorch|spikingjelly

Run by a Python that has the library, told by lines: each makes it run STEPS steps. Norse's LSNN adapts; snnTorch's
Leaky and SpikingJelly's LIFNode do not, and their currents are lowered until they fire at HZ as ours do with
adaptation. A spike subtracts the threshold, in Norse's it sets the membrane to 0. Time is the processor's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

Cell = Callable[[Any, Any], tuple[Any, Any]]


def at_rate(run: Callable[[int], float], lower: Callable[[float], None], hertz: float) -> float:
    """By how many millivolts currents are lowered so that the rate is `hertz`: halving, six times."""
    low, high = -1.0, 4.0
    run(100)
    for _ in range(6):
        middle = (low + high) / 2
        lower(middle)
        run(60)
        low, high = (middle, high) if run(100) > hertz else (low, middle)
    lower((low + high) / 2)
    run(100)
    return (low + high) / 2


def norse(kept: Any) -> Cell:
    """Its membrane moves by dt / tau of what flows into it."""
    from norse.torch.functional.lsnn import LSNNFeedForwardState, LSNNParameters, lsnn_feed_forward_step

    parameters = LSNNParameters(
        tau_syn_inv=torch.tensor(1000.0),
        tau_mem_inv=torch.tensor(1000.0 / float(kept["tau"])),
        tau_adapt_inv=torch.tensor(1000.0 / float(kept["tau_adaptation"])),
        v_th=torch.tensor(float(kept["threshold"])),
        beta=torch.tensor(float(kept["adaptation"])),
    )

    def cell(given: Any, state: Any) -> tuple[Any, Any]:
        if state is None:
            v = torch.from_numpy(kept["start"])[None].clone()
            state = LSNNFeedForwardState(v=v, i=torch.zeros_like(v), b=torch.zeros_like(v))
        return lsnn_feed_forward_step(float(kept["tau"]) * given, state, parameters, dt=0.001)

    return cell


def snntorch(kept: Any) -> Cell:
    """Leaky."""
    import snntorch as snn

    leaky = snn.Leaky(beta=float(np.exp(-1 / kept["tau"])), threshold=float(kept["threshold"]))
    return lambda given, v: leaky(given, torch.from_numpy(kept["start"])[None].clone() if v is None else v)


def spikingjelly(kept: Any) -> Cell:
    """LIFNode, single step, its torch backend."""
    from spikingjelly.activation_based.neuron import LIFNode

    tau = float(-1 / np.expm1(-1 / kept["tau"]))
    node = LIFNode(tau=tau, decay_input=False, v_threshold=float(kept["threshold"]), v_reset=None)
    node.v = torch.from_numpy(kept["start"])[None].clone()
    return lambda given, _: (node(given), None)


class Network:
    """Its synapses by source, and what is under way."""

    def __init__(self, kept: Any, cell: Cell) -> None:
        self.cell, self.count, self.depth = cell, len(kept["bias"]), int(kept["delay"].max())
        order = np.argsort(kept["source"], kind="stable")
        counts = np.bincount(kept["source"], minlength=self.count)
        self.starts = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
        self.slots = torch.from_numpy((kept["delay"].astype(np.int64) * self.count + kept["target"])[order])
        self.weights = torch.from_numpy(kept["weight"][order])
        self.rest = float(-np.expm1(-1 / kept["tau"]))
        self.bias = torch.from_numpy(kept["bias"])[None]
        self.given = self.rest * self.bias
        self.ring, self.state, self.clock = torch.zeros(self.depth * self.count), None, 0

    def lower(self, mv: float) -> None:
        """Currents by so much."""
        self.given = self.rest * (self.bias - mv)

    @torch.no_grad()
    def run(self, steps: int) -> float:
        """So many steps; the rate [Hz]."""
        spiked = 0
        for _ in range(steps):
            slot = slice(self.clock % self.depth * self.count, (self.clock % self.depth + 1) * self.count)
            spikes, self.state = self.cell(self.given + self.ring[slot], self.state)
            self.ring[slot] = 0
            fired = spikes[0].nonzero()[:, 0]
            begin, fan_out = self.starts[fired], self.starts[fired + 1] - self.starts[fired]
            one = torch.arange(int(fan_out.sum())) + torch.repeat_interleave(
                begin - fan_out.cumsum(0) + fan_out, fan_out
            )
            place = (self.slots[one] + self.clock * self.count) % len(self.ring)
            self.ring.index_add_(0, place, self.weights[one])
            spiked, self.clock = spiked + len(fired), self.clock + 1
        return 1000 * spiked / self.count / steps


def main(network: str, steps: int, hertz: float, name: str) -> None:
    """Wire it, then answer."""
    torch.set_num_threads(1)
    kept = np.load(network)
    net = Network(kept, {"norse": norse, "snntorch": snntorch, "spikingjelly": spikingjelly}[name](kept))
    lowered = 0.0 if name == "norse" and net.run(300) else at_rate(net.run, net.lower, hertz)
    print(json.dumps({"version": version(name), "lowered_mv": lowered}), flush=True)
    for _ in sys.stdin:
        started = time.process_time()
        rate = net.run(steps)
        print(json.dumps({"steps": steps, "seconds": time.process_time() - started, "rate": rate}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
