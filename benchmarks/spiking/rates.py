"""What does silence cost? Bits per character and joules of a spiking layer whose spikes have a price while it learns.

    python benchmarks/spiking/rates.py [TEXT] [--prices 0 0.5 2 8] [--neurons 200] [--passes 1] [--quick]

The layer and text of characters.py, learned by surrogate gradients of cross-entropy [nats] plus price times the mean
of all spikes (of a neuron in a step, 0 to 1); 32 streams, the same characters for every price. Operations and joules of
a character are those of measure/spiking.py and measure/energy.py: ten operations and 30 bytes for a neuron, one
operation and a weight of four bytes and a sum of eight for a synapse whose source spiked, recurrent and readout; the
character itself wakes one column. An arm is written down as soon as it is there; prices asked for before stay.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from _bench import earlier, publish
from characters import TIMES, default_text, numbered, scored

from pragnosia.learning.eprop import Cell, State, Weights, step
from pragnosia.measure.energy import energy_model
from pragnosia.measure.spiking import PRECISION, SUM_BYTES, UPDATE_BYTES, UPDATE_OPERATIONS

STREAMS, STEPS, RATE = 32, 16, 6e-3


def main() -> None:
    """Every price."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("text", nargs="?", type=Path, default=default_text())
    options.add_argument("--prices", nargs="+", type=float, default=[0.0, 0.5, 2.0, 8.0])
    options.add_argument("--neurons", type=int, default=200)
    options.add_argument("--passes", type=int, default=1)
    options.add_argument("--quick", action="store_true", help="20,000 characters, no JSON")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    ids, letters = numbered(chosen.text, 20_000 if chosen.quick else None)
    found: dict[str, Any] = {} if chosen.quick else earlier(__file__, "prices")
    names = ("bits_per_character", "spikes_per_neuron", "synaptic_operations", "joules", "dense_joules", "seconds")
    for price in chosen.prices:
        found[f"{price:g}"] = learned(ids, letters, price, chosen)
        rows = [[price, *(f"{arm[name]:.4g}" for name in names)] for price, arm in found.items()]
        print(*rows[-1], flush=True)
        if not chosen.quick:
            publish("What does silence cost?", ["price", *names], rows, {"prices": found}, __file__)


def learned(ids: torch.Tensor, letters: int, price: float, chosen: argparse.Namespace) -> dict[str, float]:
    """One layer."""
    torch.manual_seed(0)
    neurons, cell, cut = chosen.neurons, Cell(**TIMES, beta=0.1, damp=0.5), len(ids) * 9 // 10
    shapes = ((neurons, letters, 1.0), (neurons, neurons, 0.5 * neurons**-0.5), (letters, neurons, neurons**-0.5))
    weights = Weights(*((torch.randn(a, b) * scale).requires_grad_() for a, b, scale in shapes))
    optimiser = torch.optim.Adam(list(weights), RATE)
    streams = ids[: cut // STREAMS * STREAMS].view(STREAMS, -1).T
    chunks, began = (len(streams) - 1) // STEPS, time.process_time()
    state = State.silent(weights, STREAMS)
    for number in range(chosen.passes * chunks):
        at = number % chunks * STEPS
        said, spikes = [], []
        state = State(*(part.detach() for part in state))
        for now in streams[at : at + STEPS]:
            state, _ = step(weights, F.one_hot(now, letters).float(), state, cell)
            said.append(state.y)
            spikes.append(state.z)
        loss = F.cross_entropy(torch.stack(said).flatten(0, 1), streams[at + 1 : at + STEPS + 1].flatten())
        optimiser.zero_grad()
        (loss + price * torch.stack(spikes).mean()).backward()
        torch.nn.utils.clip_grad_norm_(list(weights), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = RATE * max(0.02, 1 - number / (chosen.passes * chunks))
        optimiser.step()
    seconds = time.process_time() - began
    still = Weights(*(weight.detach() for weight in weights))
    bits, rate = scored(still, ids, cut, cell)
    return {"bits_per_character": bits, "spikes_per_neuron": rate, "seconds": seconds, **cost(still, rate)}


def cost(weights: Weights, rate: float) -> dict[str, float]:
    """Of a character, with spikes and with every synapse in every step."""
    neurons, letters = len(weights.recur), len(weights.read)
    updates = (neurons + letters) * UPDATE_OPERATIONS["lifa"], (neurons + letters) * UPDATE_BYTES
    woken = rate * neurons * (neurons + letters) + neurons
    dense = neurons * (neurons + letters) + neurons
    model = energy_model()

    def joules(synapses: float, each: int) -> float:
        moved = updates[1] + synapses * (4 + SUM_BYTES)
        return model.estimate(updates[0] + each * synapses, moved, PRECISION).joules

    return {"synaptic_operations": woken, "joules": joules(woken, 1), "dense_joules": joules(dense, 2)}


if __name__ == "__main__":
    main()
