"""Brian2's C++ standalone program of the same network, built once; run by a Python that has Brian2 (NumPy below 2.3).

    python peer_brian2.py NETWORK.npz FOLDER STEPS SEED PRECISION

Delays, refractoriness, adaptation and weights are set so that a step is the same as ours (tests/spiking says how);
synapses of one delay and one weight share both, which is the fastest form it has.
"""

from __future__ import annotations

import math
import sys

import brian2 as b2
import numpy as np


def main(network: str, folder: str, steps: int, seed: int, precision: str) -> None:
    """Write and compile the program."""
    kept = np.load(network)
    b2.set_device("cpp_standalone", directory=folder, build_on_run=False)
    b2.prefs.devices.cpp_standalone.extra_make_args_unix = ["-j1"]
    b2.prefs.core.default_float_dtype = np.dtype(precision).type
    b2.defaultclock.dt = 1 * b2.ms
    b2.seed(seed)
    tau, tau_w, sigma = float(kept["tau"]), float(kept["tau_adaptation"]), float(kept["sigma"])
    noise = f" + {sigma} * sqrt(2 / ({tau}*ms)) * xi" if sigma else ""
    group = b2.NeuronGroup(
        len(kept["bias"]),
        f"dv/dt = (bias - v) / ({tau}*ms){noise} : 1\ndw/dt = -w / ({tau_w}*ms) : 1\nbias : 1 (constant)",
        threshold=f"v > {float(kept['threshold'])} + {float(kept['adaptation']) * math.exp(1 / tau_w)} * w",
        reset=f"v -= {float(kept['threshold'])}; w += 1",
        refractory=(float(kept["refractory"]) + 1) * b2.ms,
        method="euler" if sigma else "exact",
    )
    group.v, group.bias = kept["start"], kept["bias"]
    made = []
    shared = len(np.unique(kept["weight"])) < 20
    for delay in np.unique(kept["delay"]):
        chosen = kept["delay"] == delay
        for weight in np.unique(kept["weight"][chosen]) if shared else [None]:
            these = chosen if weight is None else chosen & (kept["weight"] == weight)
            add = "x" if weight is None else repr(float(weight) * math.exp(1 / tau))
            one = b2.Synapses(
                group, group, "x : 1" if weight is None else "", on_pre=f"v_post += {add}", delay=(delay - 1) * b2.ms
            )
            one.connect(i=kept["source"][these], j=kept["target"][these])
            if weight is None:
                one.x = kept["weight"][these] * math.exp(1 / tau)
            made.append(one)
    spikes = b2.SpikeMonitor(group, record=False)
    net = b2.Network(group, spikes, *made)
    net.run(steps * b2.ms)
    b2.device.build(directory=folder, compile=True, run=False, debug=False)
    print(b2.__version__)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
