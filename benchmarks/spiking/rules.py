"""Rules on the transformer: bits per byte against back-propagation at equal tokens, and what each keeps in memory.

    python benchmarks/spiking/rules.py [TEXT] [--quick] [--rules backprop ...] [--steps 80] [--rates 2e-3 6e-3]

A dense cortex of 4 layers over bytes with a readout of its own, AdamW, batches drawn by the seed, the same for all
rules. Every rule at every rate with the first seed; the rate that is better on the ninth tenth of the text is taken,
and further seeds run at it. Scored on the last tenth. `held_mib` is the most that was kept at once of one batch for
the way back, parameters not counted, each stretch of memory once. A run is written down as soon as it is there, and one
that was measured at as many steps is not run again. Seconds are the processor's, of one thread.
"""

from __future__ import annotations

import argparse
import lzma
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from _bench import earlier, publish

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM
from pragnosia.learning import learning_rule

RULES = ("backprop", "local", "dfa", "forward_forward")
SHAPE: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "max_position_embeddings": 128,
    "attention": {"num_heads": 3, "num_key_value_heads": 3, "head_dim": 32},
    "feed_forward": {"width": 288},
    "tie_word_embeddings": False,
}
ROWS, LENGTH = 8, 128
JUDGED = 128
"""Rows of held-out text that a score reads, evenly spread."""


def main() -> None:
    """Every rule at every rate, then further seeds at the better one."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("PRAGNOSIA_DATA", ".")) / "text_en" / "tinyshakespeare.txt.xz"
    options.add_argument("text", nargs="?", type=Path, default=default)
    options.add_argument("--quick", action="store_true", help="4 steps, two layers, one rate, one seed, no JSON")
    options.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    options.add_argument("--steps", type=int, default=80)
    options.add_argument("--rates", nargs="+", type=float, default=[2e-3, 6e-3])
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    chosen = options.parse_args()
    if chosen.quick:
        chosen.steps, chosen.rates, chosen.seeds = 4, chosen.rates[:1], [0]
        SHAPE["num_hidden_layers"] = 2
    raw = chosen.text.read_bytes()
    ids = torch.tensor(list(lzma.decompress(raw) if chosen.text.suffix == ".xz" else raw))
    found: dict[str, dict[str, Any]] = {} if chosen.quick else earlier(__file__, "runs")

    def once(rule: str, rate: float, seed: int) -> dict[str, Any]:
        name = f"{rule}, {chosen.steps} steps, rate {rate:g}, seed {seed}"
        if name not in found:
            found[name] = {"rule": rule, "steps": chosen.steps, "rate": rate, "seed": seed}
            found[name] |= run(ids, rule, rate, seed, chosen.steps)
            print(name, {key: round(found[name][key], 4) for key in ("chosen_by", "bits_per_byte")}, flush=True)
            told(found, quick=chosen.quick)
        return found[name]

    first = chosen.seeds[0]
    best = {
        rule: min((once(rule, rate, first) for rate in chosen.rates), key=lambda one: float(one["chosen_by"]))["rate"]
        for rule in chosen.rules
    }
    for seed in chosen.seeds[1:]:
        for rule in chosen.rules:
            once(rule, best[rule], seed)


def told(found: dict[str, dict[str, Any]], *, quick: bool) -> None:
    """Each rule at its better rate, over its seeds, and the JSON."""
    rows = []
    for rule, steps in dict.fromkeys((one["rule"], one["steps"]) for one in found.values()):
        runs = [one for one in found.values() if (one["rule"], one["steps"]) == (rule, steps)]
        rate = min(runs, key=lambda one: float(one["chosen_by"]) if one["seed"] == runs[0]["seed"] else math.inf)[
            "rate"
        ]
        taken = [one for one in runs if one["rate"] == rate]
        bits = [one["bits_per_byte"] for one in taken]
        middle = {key: statistics.median(one[key] for one in taken) for key in ("held_mib", "seconds")}
        spread = f"{min(bits):.3f}-{max(bits):.3f}"
        told_of = (f"{rate:g}", f"{statistics.mean(bits):.3f}", spread, len(bits))
        rows.append([rule, steps * ROWS * LENGTH, *told_of, *(f"{value:.1f}" for value in middle.values())])
    names = ["rule", "tokens", "rate", "bits_per_byte", "range", "seeds", "held_mib", "seconds"]
    if quick:
        print(*rows[-1])
        return
    values = {"shape": SHAPE, "batch": [ROWS, LENGTH], "runs": found}
    publish("What does a transformer learn without back-propagation?", names, rows, values, __file__)


def run(ids: Tensor, rule_name: str, rate: float, seed: int, steps: int) -> dict[str, float]:
    """Train, and say what it came to."""
    torch.manual_seed(seed)
    model = PragnosiaForCausalLM(PragnosiaConfig(**SHAPE)).train()
    rule, chance = learning_rule(rule_name), torch.Generator().manual_seed(seed)
    tenth = len(ids) // 10
    optimiser = torch.optim.AdamW([weight for _, weight in rule.changes(model)], rate, betas=(0.9, 0.95))
    held, began = 0.0, time.process_time()
    for step in range(steps):
        begins = torch.randint(0, 8 * tenth - LENGTH, (ROWS, 1), generator=chance)
        rows = ids[begins + torch.arange(LENGTH)]
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.zero_grad()
        if step == 0:
            held, lesson = kept(lambda rows=rows: rule.learn(model, rows, 1.0))  # type: ignore[misc]
        else:
            lesson = rule.learn(model, rows, 1.0)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rule.settle(model, [lesson])
    seconds = time.process_time() - began
    return {
        "chosen_by": score(model, ids[8 * tenth : 9 * tenth]),
        "bits_per_byte": score(model, ids[9 * tenth :]),
        "held_mib": held / 2**20,
        "seconds": seconds,
    }


@torch.no_grad()
def score(model: Any, ids: Tensor) -> float:
    """Bits per byte of rows spread over a text."""
    model.eval()
    begins = torch.linspace(0, len(ids) - LENGTH, JUDGED).long()
    nats = []
    for some in begins.split(ROWS):
        rows = ids[some[:, None] + torch.arange(LENGTH)]
        nats.append(float(model(input_ids=rows, labels=rows, use_cache=False).loss))
    return statistics.mean(nats) / math.log(2)


class _Kept:
    """A tensor kept for the way back; while it is, its memory counts."""

    def __init__(self, tensor: Tensor, counts: dict[int, int], peak: list[int]) -> None:
        self.tensor, self.counts = tensor, counts
        self.place, self.size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        counts[self.place] = counts.get(self.place, 0) + 1
        if counts[self.place] == 1:
            peak[0] += self.size
            peak[1] = max(peak)
        self.peak = peak

    def __del__(self) -> None:
        self.counts[self.place] -= 1
        if not self.counts[self.place]:
            self.peak[0] -= self.size


def kept(work: Callable[[], Any]) -> tuple[float, Any]:
    """The most bytes that were kept at once for the way back, and what `work` returns."""
    counts: dict[int, int] = {}
    peak = [0, 0]

    def pack(tensor: Tensor) -> Any:
        base = tensor if tensor._base is None else tensor._base
        return tensor if isinstance(base, torch.nn.Parameter) else _Kept(tensor, counts, peak)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor if isinstance(one, _Kept) else one):
        made = work()
    return float(peak[1]), made


if __name__ == "__main__":
    main()
