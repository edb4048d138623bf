"""How fast does a spiking language model of 39,424 neurons speak? One core, one text, token by token.

    python benchmarks/spiking/generation.py [--tokens 400] [--rounds 3]

The model of configs/neurogen-full.yaml as it is drawn: what it says is of no matter for the time it takes. Tokens are
sampled with temperature, top-k and top-p, and each goes back in. Told are seconds by the clock and by the processor:
where a machine has other work they differ. The aim was 196 tokens a second, NeuroGen 2.0's own figure.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from _bench import publish

from pragnosia.inference.sampler import Sampler
from pragnosia.inference.sampling import Sampling
from pragnosia.spiking.neurogen import NeuroGenForCausalLM
from pragnosia.training.assembly import shape_of
from pragnosia.training.configuration import read_config

CONFIGS = Path(__file__).parents[2] / "configs"
ARMS = ("neurogen-full", "neurogen-nano")


@torch.no_grad()
def speak(model: NeuroGenForCausalLM, tokens: int) -> tuple[float, float, float]:
    """Seconds by the clock, seconds of the processor, and spikes a token."""
    sampler = Sampler(Sampling(temperature=0.8, top_k=40, top_p=0.95, seed=0), torch.device("cpu"))
    ids, state, fired = torch.tensor([[70]]), None, 0.0
    for number in range(tokens + 10):
        if number == 10:  # the first few load the kernel and page the weights in
            began, spent, fired = time.perf_counter(), time.process_time(), 0.0
        out = model(ids, past_key_values=state, output_counts=True)
        state = out.past_key_values
        fired += float(out.counts.sum())
        ids = sampler(ids, out.logits[:, -1])
    return time.perf_counter() - began, time.process_time() - spent, fired / tokens


def main() -> None:
    """Both sizes, a few rounds; the best is told."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--tokens", type=int, default=400)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--quick", action="store_true", help="20 tokens, one round, no JSON")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.tokens, chosen.rounds = 20, 1
    torch.set_num_threads(1)
    found = {}
    for arm in ARMS:
        torch.manual_seed(0)
        model = NeuroGenForCausalLM(shape_of(read_config(CONFIGS / f"{arm}.yaml"))).eval()
        rounds = [speak(model, chosen.tokens) for _ in range(chosen.rounds)]
        clock, processor = (min(one[at] for one in rounds) for at in range(2))
        found[arm] = {
            "neurons": model.brain.num_neurons,
            "synapses": model.brain.num_synapses,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "tokens_per_second": chosen.tokens / clock,
            "tokens_per_processor_second": chosen.tokens / processor,
            "spikes_per_token": rounds[0][2],
            "rounds": rounds,
        }
    names = (
        "neurons",
        "synapses",
        "parameters",
        "tokens_per_second",
        "tokens_per_processor_second",
        "spikes_per_token",
    )
    rows = [[arm, *(f"{one[name]:,.0f}" for name in names)] for arm, one in found.items()]
    if chosen.quick:
        print("\n".join("  ".join(row) for row in [["model", *names], *rows]))
        return
    publish("How fast does a spiking language model speak?", ["model", *names], rows, {"arms": found}, __file__)


if __name__ == "__main__":
    main()
