"""Does growing where it is short pay? A mixture that grows by its own triggers, against its final shape from scratch.

The grown run begins with 2 layers of 8 experts and is told when to grow and how far: a plateau of the loss adds 2
layers where gradients are largest, within a budget of parameters; when and where is not known before. The other run
has the shape that came out, from the first step on, and as many operations. Each has its learning rate swept alike,
over all steps, on the first seed.

    python benchmarks/plasticity/growth.py [--seeds 3] [--steps 800] [--out runs/growth]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _grown import base, run, steps_for, tell, tuned

from pragnosia.model.configuration import PragnosiaConfig

START = {
    "num_hidden_layers": 2,
    "feed_forward": None,
    "experts": {
        "num_units": 8, "unit_width": 32, "num_shared": 1,
        "thalamus": {"kind": "sigmoid", "num_awake": 2, "balance_rate": 0.01},
    },
}  # fmt: skip
MOST_PARAMETERS = 350_000
"""A few more than 6 layers of 8 experts have."""

RATES = (2e-3, 4e-3, 8e-3)
"""For each arm."""


def plasticity(steps: int) -> dict[str, Any]:
    """When it grows: paces in proportion to the run; found with a seed that is not told of here."""
    return {
        "max_parameters": MOST_PARAMETERS,
        "every": 5,
        "plateau": {"window": max(1, steps // 13), "gain": 0.03},
        "layers": 2,
    }


def from_scratch(values: dict[str, Any], grown: dict[str, Any], out: Path) -> dict[str, Any]:
    """The final shape of a grown run, with as many operations."""
    shape = PragnosiaConfig.from_pretrained(out)
    experts = {**START["experts"], "num_units": grown["units"]}  # type: ignore[dict-item]
    model = values["model"] | START | {"num_hidden_layers": grown["layers"], "experts": experts}
    arm = {key: value for key, value in values.items() if key != "plasticity"} | {"model": model}
    return arm | {"steps": steps_for(arm, shape, grown["operations"])}


def main() -> None:
    """Train, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800, help="of the grown run")
    parser.add_argument("--out", type=Path, default=Path("runs/growth"))
    asked = parser.parse_args()
    values = base(asked.out)
    if values is None:
        return
    values["model"] = values["model"] | START
    growing = values | {"plasticity": plasticity(asked.steps), "steps": asked.steps}
    swept = {"grown": tuned(growing, asked.out, "grown", RATES)}
    rate = swept["grown"][0]
    places = [asked.out / f"grown-{seed}-{rate:g}" for seed in range(asked.seeds)]
    grown = [run(growing, place, seed=seed, rate=rate) for seed, place in enumerate(places)]
    arms = [from_scratch(values, one, place) for one, place in zip(grown, places, strict=True)]
    swept["scratch"] = tuned(arms[0], asked.out, "scratch", RATES)
    own = swept["scratch"][0]
    scratch = [run(arm, asked.out / f"scratch-{seed}-{own:g}", seed=seed, rate=own) for seed, arm in enumerate(arms)]
    tell(
        "A mixture grown by its own triggers, against its final shape from scratch, at equal operations",
        {"grown": grown, "scratch": scratch},
        *(swept, {"seeds": asked.seeds, "steps": asked.steps, "plasticity": plasticity(asked.steps)}, __file__),
    )


if __name__ == "__main__":
    main()
