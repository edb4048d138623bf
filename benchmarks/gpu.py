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
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM
from pragnosia.measure.accounting import account
from pragnosia.training.optimisers import OptimiserConfig, Optimisers

WIDTH, LAYERS, VOCABULARY, BATCH, LENGTH, STEPS = 1024, 8, 32_768, 16, 1024, 4
SHAPES = [(16, 2, 512), (64, 8, 128)]


def ours(units: int, awake: int, width: int) -> PragnosiaForCausalLM:
    """Our mixture, routed like Qwen3-MoE."""
    thalamus = {"kind": "softmax", "num_awake": awake, "balance_rate": 1e-3}
    config = PragnosiaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        attention={"num_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "qk_norm": "head"},
        experts={"num_units": units, "unit_width": width, "thalamus": thalamus},
    )
    return PragnosiaForCausalLM(config).cuda()


def theirs(units: int, awake: int, width: int, implementation: str) -> Qwen3MoeForCausalLM:
    """transformers' model."""
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        moe_intermediate_size=width,
        num_experts=units,
        num_experts_per_tok=awake,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    model = Qwen3MoeForCausalLM(config).cuda()
    model.set_experts_implementation(implementation)
    return model


def training(model: Any) -> Any:
    """An arm that takes optimiser steps on the same random tokens."""
    model.train()
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    optimisers = Optimisers(model.named_parameters(), ends, OptimiserConfig(learning_rate=1e-3))
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0)).cuda()

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
        arms = {"ours": training(ours(*shape))}
        for implementation in ("eager", "grouped_mm"):
            arms[f"transformers {implementation}"] = training(theirs(*shape, implementation))
        rates = in_turn(arms, rounds=rounds)
        peer = max(list(rates)[1:], key=lambda name: median(rates[name]))
        against = ratio(rates["ours"], rates[peer])
        per_token = 3 * account(ours(*shape).config, precision="bfloat16", context=LENGTH).operations_per_token
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
