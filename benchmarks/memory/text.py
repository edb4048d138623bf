"""What do working memory, a workspace and fleeting attention bring on plain text, in bits per byte?

Trained here, in turn on the same tokens of public-domain books, each arm at its best rate of a sweep, three seeds:
attention that reaches 64 tokens back in rows of 256, with and without each organ; the same without organs and with a
feed-forward of as many operations a token as the arm with working memory; attention that sees the whole row, with and
without fading. Arms measured before at the same seeds and steps stay in the JSON beside this file and in the table.

    python benchmarks/memory/text.py [--seeds 3] [--steps 200] [--arms window memory …] [--out runs/memory-text]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _arms import BOOKS, told, written
from _bench import publish
from ablations import operations

from pragnosia.training.compare import Sweep, compare

CONFIG = Path(__file__).with_suffix(".yaml")
SLOTS = {"segment": 32, "num_heads": 4, "head_dim": 32}
AGAINST = {
    "memory": ("window", "wider"),
    "workspace": ("window",),
    "memory and workspace": ("window", "wider"),
    "full": ("window",),
    "fleeting": ("full",),
    "fleeting below": ("full",),
    "fleeting window": ("window",),
}
"""What each arm is set beside."""


def shapes(model: dict[str, Any], length: int) -> dict[str, dict[str, Any]]:
    """What each arm changes in the model, by name."""
    memory = {"working_memory": {"layers": [2], "num_slots": 64, **SLOTS}}
    space = {"workspace": {"layers": [1], "num_slots": 8, **SLOTS}}
    full, fleeting = {"layer_types": "full_attention"}, {"intact": 5, "power": 1.0}
    dense = model["feed_forward"]
    one = operations({**model, "feed_forward": {**dense, "width": dense["width"] + 1}}, length)
    one -= operations(model, length)
    more = (operations({**model, **memory}, length) - operations(model, length)) / one
    return {
        "window": {},
        "memory": memory,
        "wider": {"feed_forward": {**dense, "width": dense["width"] + round(more)}},
        "workspace": space,
        "memory and workspace": {**memory, **space},
        "full": full,
        "fleeting": {**full, "fleeting": fleeting},
        "fleeting below": {**full, "fleeting": {**fleeting, "layers": [0, 1]}},
        "fleeting window": {"fleeting": fleeting},
    }


def main() -> None:
    """Train what is asked for, and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs/memory-text"))
    asked = parser.parse_args()
    named = os.environ.get("PRAGNOSIA_DATA")
    if not named or not (Path(named) / BOOKS).is_file():
        print(f"skipped: PRAGNOSIA_DATA names no folder with {BOOKS}")
        return
    base = yaml.safe_load(CONFIG.read_text("utf-8"))
    arms = shapes(base["model"], base["batch"]["sequence_length"])
    chosen = {name: arms[name] for name in asked.arms or arms}
    paths = written(asked.out.with_name(asked.out.name + "-arms"), base, chosen)
    report = compare(
        paths, data=[str(Path(named) / BOOKS)], seeds=asked.seeds, out=asked.out,
        overrides=[f"steps={asked.steps}"], sweep=Sweep(),
    ).to_dict()  # fmt: skip
    kept = CONFIG.with_suffix(".json")
    before = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    same = before.get("seeds") == asked.seeds and before.get("steps") == asked.steps
    known = {arm["name"]: arm for arm in [*(before.get("arms", []) if same else []), *report["arms"]]}
    rows = []
    for name, others in AGAINST.items():
        for other in others:
            if name in known and other in known:
                one, two = known[name], known[other]
                gap = one["bits_per_byte"]["mean"] - two["bits_per_byte"]["mean"]
                compute = one["operations_per_token"] / two["operations_per_token"]
                rows.append([name, other, told(one), told(two), f"{gap:+.4f}", f"{compute:.2f}x"])
    header = ["with", "against", "bits/byte", "theirs", "difference", "operations"]
    values = {"seeds": asked.seeds, "steps": asked.steps, "tokens": report["tokens"], "arms": list(known.values())}
    publish("What remembering brings (below 0) or costs, on held-out text", header, rows, values, __file__)


if __name__ == "__main__":
    main()
