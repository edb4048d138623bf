"""NEST with the same wiring, one thread; run by a Python that has it, told by lines: each makes it run STEPS steps.

    python peer_nest.py NETWORK.npz STEPS HZ

Its iaf_psc_delta is LIF without adaptation, which saves it work: currents are lowered until it fires at HZ as ours does
with adaptation. A spike sets the membrane to 0. Time is the processor's, of simulating alone.
"""

from __future__ import annotations

import json
import sys
import time

import nest
import numpy as np
from peer_cells import at_rate


def main(network: str, steps: int, hertz: float) -> None:
    """Wire it, then answer."""
    kept = np.load(network)
    nest.set_verbosity("M_ERROR")
    nest.ResetKernel()
    nest.set(resolution=1.0, local_num_threads=1, print_time=False)
    tau = float(kept["tau"])
    fixed = {"tau_m": tau, "C_m": tau, "E_L": 0.0, "V_reset": 0.0, "V_th": float(kept["threshold"])}
    cells = nest.Create("iaf_psc_delta", len(kept["bias"]), fixed | {"t_ref": float(kept["refractory"])})
    cells.V_m, cells.I_e = kept["start"].tolist(), kept["bias"].tolist()
    how = {"weight": kept["weight"].astype(float), "delay": kept["delay"].astype(float)}
    ids = np.array(cells.tolist())
    nest.Connect(ids[kept["source"]], ids[kept["target"]], "one_to_one", {"synapse_model": "static_synapse", **how})

    def run(steps: int) -> float:
        nest.Simulate(float(steps))
        return 1000 * nest.local_spike_counter / len(cells) / steps  # of this call alone

    def lower(mv: float) -> None:
        cells.I_e = (kept["bias"] - mv).tolist()

    print(json.dumps({"version": nest.__version__, "lowered_mv": at_rate(run, lower, hertz)}), flush=True)
    for _ in sys.stdin:
        started = time.process_time()
        rate = run(steps)
        print(json.dumps({"steps": steps, "seconds": time.process_time() - started, "rate": rate}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
