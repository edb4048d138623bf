"""What does a table of a million rows cost, in training and in speaking?

A cortex of width 512 and 8 layers (random weights, random tokens), two of which recall from a table of 1,024 x 1,024
rows, 4 heads of 16 rows each, beside the same cortex without: once with dense feed-forwards in their places, once with
the two layers' feed-forwards left out as far as they can be (8 neurons), so that everything the memory costs shows.
Training: batch 8 x 256, our optimisers, bf16. Speaking: batch 1, greedy, 96 tokens behind 32. Arms in turn.

    python benchmarks/memory/speed.py [ROUNDS]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from _bench import in_turn, median, publish, ratio, spread
from decode import speaking

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM, kernels
from training import training

LAYERS, RECALLING, ROWS = 8, (3, 6), 1 << 20
SHAPE: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_hidden_layers": LAYERS,
    "attention": {"num_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "qk_norm": "head"},
    "feed_forward": {"width": 2048, "activation": "relu2"},
}
MEMORY = {"num_rows": ROWS, "num_heads": 4, "num_awake": 16, "key_width": 128}
BARE = {"experts": {"num_units": 1, "unit_width": 8, "activation": "relu2", "thalamus": {"num_awake": 1}}}


def mixed(other: str) -> list[str]:
    """Dense layers, and others where the memory is."""
    return [other if layer in RECALLING else "dense" for layer in range(LAYERS)]


ARMS: dict[str, dict[str, Any]] = {
    "memory": {"feed_forwards": mixed("memory"), "hippocampus": MEMORY},
    "dense instead": {},
    "next to nothing instead": {"feed_forwards": mixed("experts"), **BARE},
}


def model(name: str) -> PragnosiaForCausalLM:
    """An arm's model."""
    torch.manual_seed(0)
    return PragnosiaForCausalLM(PragnosiaConfig(**SHAPE, **ARMS[name]))


def main(rounds: int) -> None:
    """Train and speak."""
    kernels.keep_freed_memory()
    models = {name: model(name) for name in ARMS}
    rates = {
        "training": in_turn({name: training(one, bf16=True, steps=1) for name, one in models.items()}, rounds=rounds)
    }
    said = {name: one.eval().bfloat16() for name, one in models.items()}
    rates["speaking"] = in_turn({name: speaking(one, 96) for name, one in said.items()}, rounds=rounds)
    rows, results = [], {}
    for what, found in rates.items():
        for name in list(ARMS)[1:]:
            against = ratio(found["memory"], found[name])
            rows.append([what, name, *(f"{median(found[arm]):.1f}" for arm in ("memory", name)), spread(against)])
        results[what] = {
            "tokens_per_second": {name: median(values) for name, values in found.items()},
            **{f"memory_over_{name.replace(' ', '_')}": ratio(found["memory"], found[name]) for name in list(ARMS)[1:]},
        }
    header = ["work", "beside", "memory tok/s", "without tok/s", "with over without"]
    publish("A table of a million rows in two of eight layers", header, rows, results, __file__)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
