"""Does growing up pay? A model of 2, then 4, then all 6 layers, against one of 6 layers from the first step on.

Both do the same number of operations in learning (the grown one gets the steps that its shallow youth saved), see text
of the same books, and have their learning rates swept alike, over all steps, on the first seed. Told are the held-out
loss seed by seed, the share of the operations after which the grown run was as good as the other at its end, and the
largest jump of the loss at a structural event.

    python benchmarks/plasticity/development.py [--seeds 3] [--steps 400] [--out runs/development]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _grown import base, run, tell, tuned

from pragnosia.plasticity.development import young
from pragnosia.training.assembly import model_config
from pragnosia.training.configuration import read_config
from pragnosia.training.organism import Costs

SHARES = ((2, 0.3), (4, 0.3))
"""Layers of the stages before the last, and their share of the steps; found with a seed that is not told of here."""


def grown_steps(values: dict[str, Any], steps: int) -> int:
    """The steps of the grown run that take as many operations as `steps` of the other, or a little fewer."""
    config = read_config({**values, "steps": steps})
    adult, costs, length = model_config(config), Costs(config.batch.tokens), config.batch.sequence_length
    allowed, made = steps * costs.step(adult, length), steps
    while True:
        early = [(layers, max(1, round(share * (made + 1)))) for layers, share in SHARES]
        spent = sum(count * costs.step(young(adult, layers), length) for layers, count in early)
        spent += (made + 1 - sum(count for _, count in early)) * costs.step(adult, length)
        if spent > allowed:
            return made
        made += 1


def main() -> None:
    """Train, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("runs/development"))
    asked = parser.parse_args()
    values = base(asked.out)
    if values is None:
        return
    stages = [{"name": f"of {layers}", "layers": layers, "share": share} for layers, share in SHARES]
    arms = {
        "scratch": values | {"steps": asked.steps},
        "grown": values | {"steps": grown_steps(values, asked.steps), "stages": [*stages, {"name": "adult"}]},
    }
    swept = {name: tuned(arm, asked.out, name) for name, arm in arms.items()}
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for seed in range(asked.seeds):
        for name, arm in arms.items():
            rate = swept[name][0]
            made[name].append(run(arm, asked.out / f"{name}-{seed}-{rate:g}", seed=seed, rate=rate))
    tell(
        "Grown up from 2 to 6 layers, against 6 layers from scratch, at equal operations",
        *(made, swept, {"seeds": asked.seeds, "steps": asked.steps, "shares": SHARES}, __file__),
    )


if __name__ == "__main__":
    main()
