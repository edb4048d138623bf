"""How fast does a small mixture train, beside transformers' Qwen3-MoE of the same shape and beside a dense model?

Width 256, 4 layers, vocabulary 8192, batch 8 x 256; every arm takes its steps with our optimiser (AdamW, clipping) and
in a process that keeps freed memory, as our trainer does. transformers runs in each of its expert implementations and
precisions, and its best counts; so does ours in each precision. One process, arms in turn.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from _bench import Arm, in_turn, median, publish, ratio, spread, timed
from _peers import IMPLEMENTATIONS, small

from pragnosia import PragnosiaForCausalLM, kernels
from pragnosia.training.optimisers import OptimiserConfig, Optimisers

BATCH, LENGTH = 8, 256
SHAPES = [(4, 2, 128), (16, 2, 128), (64, 2, 128), (64, 8, 32)]


def training(model: Any, *, bf16: bool, steps: int = 2) -> Arm:
    """An arm that takes optimiser steps on the same random tokens."""
    model.train()
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    optimisers = Optimisers(model.named_parameters(), ends, OptimiserConfig(learning_rate=1e-3))
    tokens = torch.randint(model.config.vocab_size, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))

    def work() -> float:
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = model(input_ids=tokens, labels=tokens, use_cache=False)
            output.loss.backward()
            optimisers.step(1.0)
            optimisers.zero()
            if isinstance(model, PragnosiaForCausalLM):
                model.rebalance(output.routings)
        return float(steps * tokens.numel())

    return timed(work)


def best(rates: dict[str, list[float]], prefix: str) -> str:
    """The fastest arm whose name starts so."""
    return max((name for name in rates if name.startswith(prefix)), key=lambda name: median(rates[name]))


def main(rounds: int) -> None:
    """Measure every shape."""
    torch.manual_seed(0)
    kernels.keep_freed_memory()
    rows, results, fastest = [], {}, {}
    for numbers in SHAPES:
        mixture = small(*numbers)
        arms: dict[str, Arm] = {}
        for precision in ("fp32", "bf16"):
            bf16 = precision == "bf16"
            arms[f"ours {precision}"] = training(PragnosiaForCausalLM(mixture.ours()), bf16=bf16)
            arms[f"dense {precision}"] = training(PragnosiaForCausalLM(mixture.dense()), bf16=bf16)
            for implementation in IMPLEMENTATIONS:
                model = mixture.their_model(implementation)
                arms[f"transformers {implementation} {precision}"] = training(model, bf16=bf16)
        rates = in_turn(arms, rounds=rounds)
        mine, peer, solid = (best(rates, name) for name in ("ours", "transformers", "dense"))
        against_peer, against_dense = ratio(rates[mine], rates[peer]), ratio(rates[mine], rates[solid])
        shape = "/".join(map(str, numbers))
        fastest[shape] = median(rates[mine])
        results[shape] = {
            "tokens_per_second": {name: median(values) for name, values in rates.items()},
            "best": {"ours": mine, "transformers": peer, "dense": solid},
            "ours_over_transformers": against_peer,
            "ours_over_dense": against_dense,
        }
        rows.append([shape, f"{median(rates[mine]):.0f} ({mine})", f"{median(rates[peer]):.0f} ({peer})",
                     spread(against_peer), f"{median(rates[solid]):.0f}", spread(against_dense)])  # fmt: skip
        print(rows[-1], flush=True)
    growth = growth_cost(rounds)
    header = ["units/awake/width", "ours tok/s", "transformers tok/s", "ours/theirs", "dense tok/s", "ours/dense"]
    rows += [[f"{name}: cost x{cost['median']:.2f} ({cost['min']:.2f}-{cost['max']:.2f})", "", "", "", "", ""]
             for name, cost in growth.items()]  # fmt: skip
    values = {"shapes": results, "cost_of_16x_units": growth, "rounds": rounds, "batch": [BATCH, LENGTH], "seed": 0}
    publish("Training tokens per second, small mixtures, CPU", header, rows, values, __file__)


def growth_cost(rounds: int) -> dict[str, dict[str, float]]:
    """Time per token with 16 times the units over time with few, at the same number awake."""
    costs = {}
    for (few, many), awake, width in (((4, 64), 2, 128), ((16, 256), 8, 32)):
        arms = {}
        for units in (few, many):
            model = PragnosiaForCausalLM(small(units, awake, width).ours())
            arms[str(units)] = training(model, bf16=True)
        rates = in_turn(arms, rounds=3 * rounds)
        costs[f"{few} -> {many} units of {width}, {awake} awake"] = ratio(rates[str(few)], rates[str(many)])
    return costs


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
