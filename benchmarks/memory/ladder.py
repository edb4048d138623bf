"""How large a dense model is a small one with long-term memory worth, after equal tokens?

A small cortex with one table of memory (ladder.yaml) beside dense models of its active size, of twice and of four times
that. All see the same tokens in the same order, each at its best learning rate (`pragnosia compare` sweeps it), over
the same seeds; differences are taken seed by seed. Dense models widen as is usual, hidden neurons four to one of the
stream. What a step of each takes is timed in turn, by ROUNDS of which there are 9 unless told otherwise, on random
tokens. JSON beside this file; a run that is stopped goes on where it was.

    python benchmarks/memory/ladder.py [--seeds 3] [--steps 600] [--out runs/ladder] [--time [ROUNDS]]

`--time` only times; where nothing was trained before it tells no quality.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
import yaml
from _arms import books, by_name, gap, told, trained, with_parts
from _bench import in_turn, median, publish, ratio, spread

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM, kernels
from pragnosia.measure.accounting import account
from training import training

CONFIG = Path(__file__).with_suffix(".yaml")
PART, TIME, OURS, ROUNDS = "equal tokens", "time", "memory", 9
LADDER = {"dense-1x": (128, 1), "dense-2x": (160, 2), "dense-4x": (224, 4)}
"""Name -> width, and active parameters as a multiple of ours."""


def dense(ours: dict[str, Any], width: int, active: float) -> dict[str, Any]:
    """A dense model of this width with so many parameters."""
    heads = width // ours["attention"]["head_dim"]
    attention = {**ours["attention"], "num_heads": heads, "num_key_value_heads": heads}
    shape = {**ours, "hidden_size": width, "attention": attention, "feed_forwards": "dense", "hippocampus": None}

    def sized(neurons: int) -> dict[str, Any]:
        return {**shape, "feed_forward": {**ours["feed_forward"], "width": neurons}}

    least, most = (account(PragnosiaConfig(**sized(neurons))).active_parameters for neurons in (8, 16))
    return sized(8 * max(1, round((active - least) / (most - least)) + 1))


def arms() -> dict[str, dict[str, Any]]:
    """Every arm's model, by name."""
    ours = yaml.safe_load(CONFIG.read_text("utf-8"))["model"]
    active = account(PragnosiaConfig(**ours)).active_parameters
    rungs = {name: dense(ours, width, times * active) for name, (width, times) in LADDER.items()}
    return {OURS: ours, **rungs}


def timed(rounds: int) -> dict[str, Any]:
    """Training speed of each arm, and ours over theirs."""
    kernels.keep_freed_memory()
    torch.manual_seed(0)
    models = {name: PragnosiaForCausalLM(PragnosiaConfig(**shape)) for name, shape in arms().items()}
    rates = in_turn({name: training(model, bf16=True) for name, model in models.items()}, rounds=rounds)
    theirs = {name: ratio(rates[OURS], values) for name, values in rates.items() if name != OURS}
    speeds = {name: median(values) for name, values in rates.items()}
    return {"rounds": rounds, "tokens_per_second": speeds, "memory_over": theirs}


def main() -> None:
    """Run the comparison and keep its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--time", nargs="?", type=int, const=ROUNDS, metavar="ROUNDS")
    asked = parser.parse_args()
    if asked.time:
        fresh = {TIME: timed(asked.time)}
    else:
        text = books()
        if text is None:
            return
        base = yaml.safe_load(CONFIG.read_text("utf-8"))
        fresh = {PART: trained(base, arms(), text=text, seeds=asked.seeds, steps=asked.steps, out=asked.out)}
    kept = with_parts(__file__, fresh)
    found, speeds = by_name(kept.get(PART, {})), kept.get(TIME, {})
    rows = [
        [
            *(name, told(arm), "" if name == OURS else gap(found[OURS], arm)),
            *(f"{arm['total_parameters']:,}", f"{arm['active_parameters']:,}", f"{arm['learning_rate']:g}"),
            spread(speeds["memory_over"][name]) if speeds and name != OURS else "",
        ]
        for name, arm in found.items()
    ] or [[name, *[""] * 5, spread(over)] for name, over in speeds["memory_over"].items()]
    header = ["arm", "bits/byte", "memory minus this, by seed", "parameters", "active", "rate", "its speed over this"]
    publish("A small cortex with long-term memory beside dense models", header, rows, kept, __file__, parts=True)


if __name__ == "__main__":
    main()
