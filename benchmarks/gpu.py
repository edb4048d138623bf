"""How fast does a mixture train on a GPU, beside transformers' Qwen3-MoE of the same shape, and how busy is the GPU?

Width 1024, 8 layers, vocabulary 32,768, batch 16 x 1024, bfloat16 autocast, our optimiser for every arm. Model FLOP
utilisation is 6 operations per active parameter and token, plus attention's, over the device's dense bfloat16 peak (the
second argument, in TFLOP/s; 989 for an H100 or H200). usage: gpu.py [ROUNDS] [PEAK]
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from _bench import in_turn, median, publish, ratio, spread
from _peers import IMPLEMENTATIONS, middling

from pragnosia import PragnosiaForCausalLM
from pragnosia.measure.accounting import account
from pragnosia.training.optimisers import OptimiserConfig, Optimisers

BATCH, LENGTH, STEPS = 16, 1024, 4
SHAPES = [(16, 2, 512), (64, 8, 128)]


def training(model: Any) -> Any:
    """An arm that takes optimiser steps on the same random tokens."""
    model.cuda().train()
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    optimisers = Optimisers(model.named_parameters(), ends, OptimiserConfig(learning_rate=1e-3))
    tokens = torch.randint(model.config.vocab_size, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0)).cuda()

    def arm() -> tuple[float, float]:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(STEPS):
            with torch.autocast("cuda", torch.bfloat16):
                output = model(input_ids=tokens, labels=tokens, use_cache=False)
            output.loss.backward()
            optimisers.step(1.0)
            optimisers.zero()
            if isinstance(model, PragnosiaForCausalLM):
                model.rebalance(output.routings)
        torch.cuda.synchronize()
        return float(STEPS * tokens.numel()), time.perf_counter() - started

    return arm


def main(rounds: int, peak: float) -> None:
    """Measure every shape."""
    if not torch.cuda.is_available():
        print("torch sees no CUDA device; this benchmark needs one")
        return
    torch.manual_seed(0)
    rows, results = [], {}
    for shape in SHAPES:
        mixture = middling(*shape)
        arms = {"ours": training(PragnosiaForCausalLM(mixture.ours()))}
        for implementation in IMPLEMENTATIONS:
            arms[f"transformers {implementation}"] = training(mixture.their_model(implementation))
        rates = in_turn(arms, rounds=rounds)
        peer = max(list(rates)[1:], key=lambda name: median(rates[name]))
        against = ratio(rates["ours"], rates[peer])
        per_token = 3 * account(mixture.ours(), precision="bfloat16", context=LENGTH).operations_per_token
        used = median(rates["ours"]) * per_token / (peak * 1e12)
        name = "/".join(map(str, shape))
        results[name] = {
            "tokens_per_second": {arm: median(values) for arm, values in rates.items()},
            "ours_over_transformers": against,
            "model_flop_utilisation": used,
        }
        rows.append(
            [
                name,
                f"{median(rates['ours']):.0f}",
                f"{median(rates[peer]):.0f} ({peer})",
                spread(against),
                f"{used:.1%}",
            ]
        )
        print(rows[-1], flush=True)
    header = ["units/awake/width", "ours tok/s", "transformers tok/s", "ours/theirs", "MFU"]
    values = {
        "shapes": results,
        "rounds": rounds,
        "batch": [BATCH, LENGTH],
        "peak_tflops": peak,
        "device": torch.cuda.get_device_name(),
    }
    publish("Training tokens per second, mixtures, GPU", header, rows, values, __file__)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, float(sys.argv[2]) if len(sys.argv) > 2 else 989.0)
