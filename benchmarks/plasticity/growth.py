"""Does growing where it is short pay? A mixture that grows by its own triggers, against its final shape from scratch.

The grown run begins with 2 layers of 8 experts and is told when to grow and how far (a plateau of the loss adds a
layer where gradients are largest, an overloaded expert gets newborns beside it, a budget of parameters bounds both);
what it will look like is not known before. The other run has the shape that came out, from the first step on, and as
many operations. Each has its learning rate swept alike on the first seed.

    python benchmarks/plasticity/growth.py [--seeds 3] [--steps 300] [--out runs/growth]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _bench import publish
from _grown import base, compared, run, spread, steps_for, tuned

from pragnosia.model.configuration import PragnosiaConfig

START = {
    "num_hidden_layers": 2,
    "feed_forward": None,
    "experts": {
        "num_units": 8, "unit_width": 48, "num_shared": 1,
        "thalamus": {"kind": "sigmoid", "num_awake": 2, "balance_rate": 0.01},
    },
}  # fmt: skip
MOST_PARAMETERS = 345_000


def plasticity(steps: int) -> dict[str, Any]:
    """When it grows: paces in proportion to the run."""
    window = max(1, steps // 15)
    plateau = {"window": window, "gain": 0.06}
    return {
        "max_parameters": MOST_PARAMETERS,
        "every": 5,
        "plateau": plateau,
        "overload": 2.5,
        "units": 2,
    }


RATES = (2e-3, 4e-3, 8e-3)


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
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/growth"))
    asked = parser.parse_args()
    values = base(asked.out)
    if values is None:
        return
    values["model"] = values["model"] | START
    growing = values | {"plasticity": plasticity(asked.steps), "steps": asked.steps}
    rate = tuned(growing, asked.out, "grown", RATES)
    names = [f"grown-{seed}-{rate:g}" for seed in range(asked.seeds)]
    grown = [run(growing, asked.out / name, seed=seed, rate=rate) for seed, name in enumerate(names)]
    arms = [from_scratch(values, one, asked.out / name) for one, name in zip(grown, names, strict=True)]
    own = tuned(arms[0], asked.out, "scratch", RATES)
    scratch = [run(arm, asked.out / f"scratch-{seed}-{own:g}", seed=seed, rate=own) for seed, arm in enumerate(arms)]
    found = compared(grown, scratch)
    rows = [
        [name, " ".join(f"{one['layers']}x{one['units']}" for one in runs), " ".join(str(one["steps"]) for one in runs),
         f"{best:g}", spread([one["bits_per_byte"] for one in runs])]
        for name, runs, best in (("grown", grown, rate), ("scratch", scratch, own))
    ]  # fmt: skip
    rows += [
        ["grown less scratch", "", "", "", spread(found["grown_less_scratch"], "+.4f")],
        ["operations saved", "", "", "", spread([100 * share for share in found["saving"]], ".1f") + " %"],
        ["largest jump at an event", "", "", "", f"{100 * found['largest_jump']:.5f} %"],
    ]
    header = ["arm", "layers x experts at the end", "steps", "learning rate", "bits/byte held out"]
    kept = {
        "seeds": asked.seeds,
        "steps": asked.steps,
        "plasticity": plasticity(asked.steps),
        "learning_rates": [rate, own],
    }
    values = {**kept, **found, "runs": {"grown": grown, "scratch": scratch}}
    publish(
        "A mixture grown by its triggers, against its final shape from scratch, at equal operations",
        header,
        rows,
        values,
        __file__,
    )


if __name__ == "__main__":
    main()
