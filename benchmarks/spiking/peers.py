"""The network of simulate.py beside NEST, and beside Norse, snnTorch and SpikingJelly with gathered propagation.

    PEERS_PYTHON=PYTHON python benchmarks/spiking/peers.py [ROUNDS [STEPS]]

39,424 neurons, 1.18 M synapses (configs/neurogen.yaml without competition), constant drive, dt 1 ms, one thread each,
at our rate. Arms run in turn and are timed by the processor's clock, so that what else a machine does counts less; each
peer is a process that is wired once. PYTHON is one that has the peers; those it lacks are left out and said so.
peer_nest.py and peer_cells.py say what each peer leaves out: only Norse's neuron adapts as ours does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
import torch
from _bench import Arm, earlier, in_turn, median, publish, ratio, spread
from _network import brain, flat

from pragnosia.spiking.running import run

HERE = Path(__file__).parent
WARM = 500
PEERS = {
    "NEST iaf_psc_delta": ("peer_nest.py", 10),
    "Norse LSNN, gathered": ("peer_cells.py", 10, "norse"),
    "snnTorch Leaky, gathered": ("peer_cells.py", 10, "snntorch"),
    "SpikingJelly LIFNode, gathered": ("peer_cells.py", 10, "spikingjelly"),
}
"""Program, by how much fewer steps it is asked for than we, and its name there."""


class Peer:
    """A process that runs some steps for each line."""

    def __init__(self, python: str, network: Path, steps: int, hertz: float, about: tuple[Any, ...]) -> None:
        program, fewer, *name = about
        words = [python, str(HERE / program), str(network), str(max(steps // fewer, 20)), str(hertz), *name]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE
        )
        self.about: dict[str, Any] = {}
        self.rate = 0.0

    def ready(self) -> str | None:
        """Why it is not; None where it is."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                self.about = json.loads(line)
                return None
        return (self.process.stderr.read().strip().splitlines() or ["it ended"])[-1]

    def arm(self) -> tuple[float, float]:
        """One line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        self.rate = told["rate"]
        return told["steps"], told["seconds"]

    def end(self) -> None:
        """Let it go."""
        self.process.communicate()


def main(rounds: int = 5, steps: int = 2000) -> None:
    """All of them; those of an earlier run that are not here now stay."""
    torch.set_num_threads(1)
    given = brain("constant")
    _, state = run(given, given.begin(), WARM)
    rates: list[float] = []

    def ours() -> tuple[float, float]:
        nonlocal state
        started = time.process_time()
        activity, state = run(given, state, steps, consume=True)
        seconds = time.process_time() - started
        rates.append(1000 * int(activity.counts.sum()) / given.num_neurons / steps)
        return steps, seconds

    ours()
    python = os.environ.get("PEERS_PYTHON", sys.executable)
    arms: dict[str, Arm] = {"pragnosia": ours}
    there: dict[str, Peer] = {}
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder) / "network.npz"
        np.savez(network, **flat(given))
        for name, about in PEERS.items():
            peer = Peer(python, network, steps, rates[0], about)
            if (why := peer.ready()) is not None:
                print(f"left out: {name}: {why}")
                continue
            there[name], arms[name] = peer, peer.arm
            print(f"ready: {name} {peer.about}", flush=True)
        speeds = in_turn(arms, rounds=rounds)
        for peer in there.values():
            peer.end()
    found = earlier(__file__, "arms")
    for name, values in speeds.items():
        about = {"steps_per_second": median(values), "all": values, "rounds": rounds}
        about["rate_hz"] = median(rates) if name == "pragnosia" else there[name].rate
        about |= {"ours_over_it": ratio(speeds["pragnosia"], values), **(there[name].about if name in there else {})}
        found[name] = about
    rows = [
        [name, f"{arm['steps_per_second']:,.0f}", f"{arm['rate_hz']:.1f}", spread(arm["ours_over_it"])]
        for name, arm in found.items()
    ]
    publish(
        "steps per second of processor time", ["who", "steps/s", "Hz", "ours over it"], rows, {"arms": found}, __file__
    )


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
