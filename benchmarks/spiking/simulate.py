"""How many steps a second does a brain of 39,424 LIF-A neurons and 1.18 M synapses take on one core?

configs/neurogen.yaml (dt 1 ms, fan-in 30) without competition, driven by currents or by noise, once with a weight for
each projection and once with one for each synapse: ours, and Brian2's C++ standalone program of the same network in
both precisions (NEST, Norse, snnTorch and SpikingJelly: peers.py). Arms run in turn, each on one thread. Then ten
times as many neurons, two threads beside one, and words that enter as soon as the first region is free beside words
that wait for the last answer.

    BRIAN2_PYTHON=PYTHON python benchmarks/spiking/simulate.py [ROUNDS [STEPS]]

PYTHON is one that has Brian2, which needs an older NumPy than ours; peers that are not installed are left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
import torch
from _bench import in_turn, median, publish, ratio, spread
from _network import brain, flat

from pragnosia.spiking.pipeline import Route, journey, present
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.running import run

HERE = Path(__file__).parent
WARM = 300
Arm = Callable[[], tuple[float, float]]
CASES = {
    "constant drive": ("constant", 0.0),
    "noise": ("noise", 0.0),
    "constant drive, a weight for each synapse": ("constant", 0.5),
}


def ours(given: Brain, steps: int, rates: dict[str, float], name: str, threads: int = 1) -> Arm:
    """Our kernel, going on from where it stopped."""
    _, state = run(given, given.begin(), WARM)

    def arm() -> tuple[float, float]:
        nonlocal state
        started = time.perf_counter()
        activity, state = run(given, state, steps, threads=threads, consume=True)
        seconds = time.perf_counter() - started
        rates[name] = 1000 * int(activity.counts.sum()) / given.num_neurons / steps
        return steps, seconds

    return arm


def brian2(given: Brain, steps: int, rates: dict[str, float], name: str, precision: str, folder: Path) -> Arm | None:
    """Brian2's program, which begins anew each time; its own clock, which leaves setting up out."""
    python = os.environ.get("BRIAN2_PYTHON")
    if python is None:
        return None
    network, program = folder / f"{precision}.npz", folder / f"brian2-{precision}"
    np.savez(network, **flat(given))
    command = [python, str(HERE / "peer_brian2.py"), str(network), str(program), str(steps), "0", precision]
    subprocess.run(command, check=True, capture_output=True)

    def arm() -> tuple[float, float]:
        subprocess.run([str(program / "main")], cwd=program, check=True, capture_output=True)
        seconds = float((program / "results" / "last_run_info.txt").read_text("utf-8").split()[0])
        (counted,) = (program / "results").glob("_array_spikemonitor_N_*")
        spikes = int(np.fromfile(counted, np.int32)[0])
        rates[name] = 1000 * spikes / given.num_neurons / steps
        return steps, seconds

    return arm


def measured(title: str, drive: str, own: float, rounds: int, steps: int) -> dict[str, Any]:
    """One case: all arms in turn."""
    rates: dict[str, float] = {}
    given = brain(drive, spread=own)
    with tempfile.TemporaryDirectory() as folder:
        arms: dict[str, Arm | None] = {"pragnosia": ours(given, steps, rates, "pragnosia")}
        for precision in ("float64", "float32"):
            name = f"Brian2 C++ standalone, {precision}"
            arms[name] = brian2(given, steps, rates, name, precision, Path(folder))
        there = {name: arm for name, arm in arms.items() if arm is not None}
        speeds = in_turn(there, rounds=rounds)
    found = {
        name: {
            "steps_per_second": median(values),
            "all": values,
            "rate_hz": rates[name],
            "ours_over_it": ratio(speeds["pragnosia"], values),
        }
        for name, values in speeds.items()
    }
    return {"case": title, "neurons": given.num_neurons, "synapses": given.num_synapses, "arms": found}


def growth(rounds: int, steps: int) -> dict[str, Any]:
    """Time of a step with ten times the neurons over that of one, at equal rate."""
    rates: dict[str, float] = {}
    arms = {str(times): ours(brain("constant", times=times), steps // times, rates, str(times)) for times in (1, 10)}
    speeds = in_turn(arms, rounds=rounds)
    return {"time_ratio": ratio(speeds["1"], speeds["10"]), "rate_hz": rates, "steps_per_second": speeds}


def side_by_side(rounds: int, steps: int) -> dict[str, Any]:
    """Two threads over one, of the same spikes."""
    rates: dict[str, float] = {}
    given = brain("constant")
    arms = {str(threads): ours(given, steps, rates, str(threads), threads) for threads in (1, 2)}
    speeds = in_turn(arms, rounds=rounds)
    return {"speedup": ratio(speeds["2"], speeds["1"]), "window_steps": given.window, "steps_per_second": speeds}


def pipeline(rounds: int, num_words: int = 20) -> dict[str, Any]:
    """Words a second, entering at once over one by one."""
    given, route = brain("constant"), Route()
    chance = torch.Generator().manual_seed(0)
    words = [5.0 * torch.rand(1, given.region(route.into).config.size, generator=chance) for _ in range(num_words)]

    def arm(*, pipelined: bool) -> Arm:
        def say() -> tuple[float, float]:
            started = time.perf_counter()
            present(given, given.begin(), words, route, pipelined=pipelined)
            return num_words, time.perf_counter() - started

        return say

    speeds = in_turn({"pipelined": arm(pipelined=True), "sequential": arm(pipelined=False)}, rounds=rounds)
    return {
        "speedup": ratio(speeds["pipelined"], speeds["sequential"]),
        "steps_per_word": route.steps_per_word,
        "journey_steps": journey(given, route.into, route.out),
        "words_per_second": speeds,
    }


def main(rounds: int = 5, steps: int = 3000) -> None:
    """All of it."""
    torch.set_num_threads(1)
    cases = [measured(title, *about, rounds, steps) for title, about in CASES.items()]
    rows = [
        [case["case"], name, f"{arm['steps_per_second']:,.0f}", f"{arm['rate_hz']:.1f}", spread(arm["ours_over_it"])]
        for case in cases
        for name, arm in case["arms"].items()
    ]
    grown, threads, words = growth(rounds, steps), side_by_side(rounds, steps), pipeline(rounds)
    rows += [
        ["ten times the neurons", "pragnosia", "time of a step", "", spread(grown["time_ratio"])],
        ["two threads over one", "pragnosia", "", "", spread(threads["speedup"])],
        ["pipelined words over one by one", "pragnosia", "", "", spread(words["speedup"])],
    ]
    publish(
        "steps a second of 39,424 LIF-A neurons and 1.18 M synapses, dt 1 ms, one core",
        ["case", "who", "steps/s", "Hz", "ours over it"],
        rows,
        {"rounds": rounds, "steps": steps, "cases": cases, "growth": grown, "threads": threads, "pipeline": words},
        __file__,
    )


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
