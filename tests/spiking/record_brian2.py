"""Writes brian2.json: small networks as Brian2 runs them, in double precision. Needs Brian2, which no test does.

    python tests/spiking/record_brian2.py

Brian2 lets spikes act after the thresholds of a step, ours reads what arrives before them: a delay of d there is d + 1
here, and what arrived has then faded once. Its refractoriness counts the step of the spike, and adaptation has faded
once when the threshold looks at it. Synaptic variables are held within a step.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import brian2 as b2
import numpy as np

N, STEPS, FAN_IN, WATCHED = 30, 250, 6, 3
TAU, TAU_W, TAU_E, TAU_I, THETA, BETA, REFRACTORY = 20.0, 100.0, 5.0, 10.0, 15.0, 1.5, 2
FADES = {tau: math.exp(-1 / tau) for tau in (TAU, TAU_W, TAU_E, TAU_I)}

CASES: dict[str, dict[str, Any]] = {
    "lif-currents": {"model": "dv/dt = (drive + s - v) / (20*ms) : 1\ns : 1\ndrive : 1", "fade": {"s": TAU_E}},
    "lifa-pulses": {"model": "dv/dt = (drive - v) / (20*ms) : 1\ndw/dt = -w / (100*ms) : 1\ndrive : 1", "fade": {}},
    "lifa-conductances": {
        "model": "dv/dt = (drive + ge * (70 - v) + gi * (-10 - v) - v) / (20*ms) : 1\n"
        "dw/dt = -w / (100*ms) : 1\ndrive : 1\nge : 1\ngi : 1",
        "fade": {"ge": TAU_E, "gi": TAU_I},
    },
    "izhikevich-pulses": {"model": "v : 1\nw : 1\ndrive : 1\njump : 1", "fade": {}},
}


def record(name: str, seed: int) -> dict[str, Any]:
    """One network and what became of it."""
    b2.start_scope()
    chance = np.random.default_rng(seed)
    izhikevich, adapts = name.startswith("izhikevich"), name.startswith("lifa")
    conductances = name.endswith("conductances")
    source = np.concatenate([chance.choice(N, FAN_IN, replace=False) for _ in range(N)])
    target = np.repeat(np.arange(N), FAN_IN)
    delay = chance.integers(1, 8, len(target))
    size = 0.08 if conductances else 4.0 if izhikevich else 1.5
    weight = size * chance.uniform(0.5, 1.5, len(target)) * np.where(chance.random(len(target)) < 0.3, -1, 1)
    drive = chance.uniform(4, 14, N) if izhikevich else chance.uniform(14, 24, N)
    start = chance.uniform(-70, -60, N) if izhikevich else chance.uniform(0, THETA, N)

    limit = f"v > {THETA} + {BETA / FADES[TAU_W]!r} * w" if adapts else "v > 30" if izhikevich else f"v > {THETA}"
    reset = "v = -65; w += 8" if izhikevich else f"v -= {THETA}" + ("; w += 1" if adapts else "")
    rest = 1 if izhikevich else REFRACTORY + 1
    group = b2.NeuronGroup(
        N,
        CASES[name]["model"],
        threshold=limit,
        reset=reset,
        refractory=rest * b2.ms,
        method="exact" if not izhikevich else "euler",
    )
    group.v, group.drive = start, drive
    if izhikevich:
        group.w = 0.2 * start
        half = "v += 0.5 * (0.04 * v**2 + 5 * v + 140 - w + drive + jump)\n"
        group.run_regularly(2 * half + "w += 0.02 * (0.2 * v - w)\njump = 0", when="start")
    for variable, tau in CASES[name]["fade"].items():
        group.run_regularly(f"{variable} *= {FADES[tau]!r}", when="start")
    into = {"currents": "s", "pulses": "jump" if izhikevich else "v"}.get(name.split("-")[1])
    synapses = []
    for sign, variable in ((1, "ge"), (-1, "gi")) if conductances else ((0, into),):
        chosen = np.ones(len(target), bool) if sign == 0 else np.sign(weight) == sign
        one = b2.Synapses(group, group, "x : 1", on_pre=f"{variable}_post += x")
        one.connect(i=source[chosen], j=target[chosen])
        one.x = weight[chosen] if sign == 0 else np.abs(weight[chosen])
        one.delay = (delay[chosen] - 1) * b2.ms
        synapses.append(one)
    spikes = b2.SpikeMonitor(group)
    traces = b2.StateMonitor(group, "v", record=range(WATCHED), when="before_thresholds")
    b2.Network(group, spikes, traces, *synapses).run(STEPS * b2.ms)

    # what a weight is here, where it has faded once before it is seen
    faded = np.where(weight > 0, FADES[TAU_E], FADES[TAU_I]) if conductances else FADES[TAU_E if into == "s" else TAU]
    ours = weight * (1.0 if izhikevich else faded)
    return {
        "source": source.tolist(), "target": target.tolist(), "delay": delay.tolist(), "weight": ours.tolist(),
        "drive": drive.tolist(), "start": start.tolist(),
        "spikes": sorted([round(t / b2.ms), int(i)] for t, i in zip(spikes.t, spikes.i, strict=True)),
        "potential": np.round(traces.v.T, 6).tolist(),
    }  # fmt: skip


def main() -> None:
    """All cases."""
    b2.prefs.codegen.target = "numpy"
    b2.defaultclock.dt = 1 * b2.ms
    cases = {name: record(name, seed) for seed, name in enumerate(CASES)}
    record_ = {"brian2": b2.__version__, "steps": STEPS, "neurons": N, "cases": cases}
    Path(__file__).with_name("brian2.json").write_text(json.dumps(record_) + "\n", encoding="utf-8")
    for name, case in cases.items():
        print(name, len(case["spikes"]), "spikes")


if __name__ == "__main__":
    main()
