"""Does upcycling pay? Mixtures made of a dense model and trained on, beside the dense model itself trained on as long.

For each seed a dense parent is trained and then goes on in several ways, each for as many operations as the parent's
own going on takes (fewer steps where a token costs more; steps x operations per token are equal):

    dense      the parent itself
    copies     8 experts, each a copy of the feed-forward, 2 awake: twice the feed-forward's work per token
    one-awake  the same, 1 awake: the work per token of the parent, but for the router
    dropped    the same, and half of each copy's neurons drawn anew (drop-upcycling)
    halves     16 experts, each half of a copy, 2 awake: the work per token of the parent, but for the router

All that goes on tries the same learning rates with seed 0, each arm then runs at its best with every seed. Differences
to `dense` are taken seed by seed. JSON beside this file. What is done is kept in --out.

    python benchmarks/plasticity/upcycling.py [--seeds 3] [--steps 1000] [--out runs/upcycling]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from _arms import held_out
from _bench import publish

from pragnosia.inference.loading import load_config
from pragnosia.measure.accounting import account
from pragnosia.plasticity.upcycling import Upcycling, upcycle_directory
from pragnosia.training.trainer import train

CONFIG = Path(__file__).with_suffix(".yaml")
PLANS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "copies": {"experts": 8, "awake": 2},
    "one-awake": {"experts": 8, "awake": 1},
    "dropped": {"experts": 8, "awake": 1, "drop": 0.5},
    "halves": {"experts": 16, "awake": 2, "split": 2},
}
TEXT = "text_en/fairytale_stories.train.txt.xz"
RATES = (3e-3, 6e-3, 1.2e-2)
SWEPT = 0.5
"""Of the steps, in the search for a rate."""


def stories() -> Path | None:
    """What all learn from; a line says where it is missing."""
    named = os.environ.get("PRAGNOSIA_DATA")
    if named and (Path(named) / TEXT).is_file():
        return Path(named) / TEXT
    print(f"nothing to train on: PRAGNOSIA_DATA names no folder with {TEXT}")
    return None


def ran(settings: dict[str, Any], out: Path) -> float:
    """Held-out bits per byte at the end of a run, which is made unless it is there."""
    if not (out / "report.json").is_file():
        shutil.rmtree(out, ignore_errors=True)
        train(settings, out=out)
        shutil.rmtree(out / "checkpoints")
    return held_out(out)


def operations(folder: Path, length: int) -> int:
    """Per token."""
    return account(load_config(folder), precision="float32", context=length).operations_per_token


class Family:
    """A parent of one seed, and what went on from it."""

    def __init__(self, base: dict[str, Any], seed: int, out: Path) -> None:
        self.base, self.seed, self.out = base, seed, out
        self.parent = out / f"parent-{seed}"
        self.bits_per_byte = ran(base | {"seed": seed}, self.parent)
        self.length = base["batch"]["sequence_length"]

    def start(self, name: str) -> Path:
        """The model that an arm begins with."""
        plan = PLANS[name]
        folder = self.out / f"{name}-{self.seed}"
        if plan is None:
            return self.parent
        if not folder.exists():
            upcycle_directory(self.parent, folder, Upcycling(seed=self.seed, **plan))
        return folder

    def steps(self, name: str) -> int:
        """As many as take the operations of the parent's own going on."""
        mine, its = operations(self.start(name), self.length), operations(self.parent, self.length)
        return round(self.base["steps"] * its / mine)

    def gone_on(self, name: str, rate: float, share: float = 1.0) -> float:
        """Bits per byte of an arm."""
        settings = {key: value for key, value in self.base.items() if key not in ("model", "tokenizer")} | {
            "start": str(self.start(name)),
            "seed": self.seed + 1000,  # other text than the parent began with
            "steps": max(1, round(share * self.steps(name))),
            "optimiser": self.base["optimiser"] | {"learning_rate": rate},
        }
        return ran(settings, self.out / f"run-{name}-{self.seed}-{rate:g}-{share:g}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/upcycling"))
    asked = parser.parse_args()
    text = stories()
    if text is None:
        return
    base = yaml.safe_load(CONFIG.read_text("utf-8")) | {"steps": asked.steps}
    base["data"] = base["data"] | {"sources": [str(text)], "cache": str(asked.out / "data")}
    first = Family(base, 0, asked.out)
    base["tokenizer"] = {"path": str(first.parent)}  # one for all seeds
    families = [first, *(Family(base, seed, asked.out) for seed in range(1, asked.seeds))]
    sweeps = {name: {rate: first.gone_on(name, rate, SWEPT) for rate in RATES} for name in PLANS}
    best = {name: min(found, key=lambda rate: found[rate]) for name, found in sweeps.items()}
    found = {name: [family.gone_on(name, best[name]) for family in families] for name in PLANS}
    parents = [family.bits_per_byte for family in families]
    arms, rows = {}, []
    for name, by_seed in found.items():
        counted = account(load_config(first.start(name)), precision="float32", context=first.length)
        gaps = [a - b for a, b in zip(by_seed, found["dense"], strict=True)]
        arms[name] = {
            "bits_per_byte": by_seed,
            "against_dense": gaps,
            "steps": first.steps(name),
            "learning_rate": best[name],
            "sweep": sweeps[name],
            "operations_per_token": counted.operations_per_token,
            "total_parameters": counted.total_parameters,
        }
        spread = f" +- {stdev(by_seed):.4f}" if len(by_seed) > 1 else ""
        rows.append(
            [
                *(name, f"{mean(by_seed):.4f}{spread}"),
                f"{mean(gaps):+.4f} ({' '.join(f'{gap:+.4f}' for gap in gaps)})",
                *(arms[name]["steps"], f"{counted.operations_per_token:,}", f"{counted.total_parameters:,}"),
                f"{arms[name]['learning_rate']:g}",
            ]
        )
    publish(
        f"Parents of {asked.steps} steps at {mean(parents):.4f} bits per byte, gone on for as many operations",
        ["arm", "bits per byte", "against dense, by seed", "steps", "operations/token", "parameters", "rate"],
        rows,
        {"seeds": asked.seeds, "steps": asked.steps, "parents": parents, "arms": arms},
        __file__,
    )


if __name__ == "__main__":
    main()
