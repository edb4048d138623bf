"""Does each mechanism of sleep pay? One row for each: with it, without it, at the same compute.

Trained here, in turn on the same tokens, each arm at its best rate of a sweep, three seeds:

    dendrites   4 a head with 1 and with 2 awake, against plain attention of the same heads, and against one that takes
                as many operations a token as 2 awake dendrites do: more heads, a wider feed-forward
    exits       a model that may be left after layer 2, against the same model without: equal tokens, and, since exits
                cost training, equal operations (it then trains fewer steps); and with layer dropout alone left out

Rows of columns come from benchmarks/sleep.py --ablations, those of token gates from benchmarks/gates.py, where their
JSON lies beside this file. `--table` trains nothing and shows what there is. JSON beside this file.

    python benchmarks/ablations.py [--seeds 3] [--steps 100] [--out runs/ablations] [--only dendrites|exits] [--table]
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import yaml
from _bench import publish

from pragnosia.measure.accounting import account
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.training.compare import Sweep, compare
from pragnosia.training.exits import dropout_rates

CONFIG = Path(__file__).with_suffix(".yaml")
BOOKS = "text_en/books_pd.train.txt.xz"
PLAIN = "plain"
DENDRITES = {"dendrites-1-of-4": 1, "dendrites-2-of-4": 2}
EQUAL_PLAIN = "plain-equal-compute"
EXITS = {"layers": [2], "layer_dropout": 0.1}
EQUAL_COMPUTE = "exits-equal-compute"

# Mechanism, what it is measured against, the JSON that holds both arms, their names.
ROWS = (
    ("columns, 95 % asleep", "dense, equal total", "sleep", "asleep-95", "dense"),
    ("columns, 95 % asleep", "dense, equal active", "sleep", "asleep-95", "dense-of-95"),
    ("columns of 32", "columns of 8", "sleep_ablations", "columns-of-32", "asleep-95"),
    ("neurons compete in a column", "none do", "sleep_ablations", "neurons-compete", "asleep-95"),
    ("router of rank 32", "full rank", "sleep_ablations", "router-of-rank-32", "asleep-95"),
    ("balance of columns", "none", "sleep_ablations", "asleep-95", "no-balance"),
    ("dendrites, 1 of 4 awake", "plain, the same heads", "ablations", "dendrites-1-of-4", PLAIN),
    ("dendrites, 2 of 4 awake", "plain, the same heads", "ablations", "dendrites-2-of-4", PLAIN),
    ("dendrites, 2 of 4 awake", "plain, equal compute", "ablations", "dendrites-2-of-4", EQUAL_PLAIN),
    ("exits and layer dropout", "none, equal tokens", "ablations", "exits", PLAIN),
    ("exits alone", "none, equal tokens", "ablations", "exits-no-dropout", PLAIN),
    ("exits and layer dropout", "none, equal compute", "ablations", EQUAL_COMPUTE, PLAIN),
    ("token gates, half pass", "none, equal tokens", "gates", "gated", "without"),
    ("token gates, half pass", "narrower, equal compute", "gates", "gated", "narrower"),
)


def operations(model: dict[str, Any], length: int) -> int:
    """Of one token, forward, in a context of so many."""
    return account(PragnosiaConfig(**model), precision="float32", context=length).operations_per_token


def of_equal_compute(model: dict[str, Any], target: int, length: int) -> dict[str, Any]:
    """Plain attention of so many operations a token: as many heads as fit, and the rest in the feed-forward."""
    heads, dense = model["attention"], model["feed_forward"]
    more = heads
    while operations({**model, "attention": more}, length) <= target:
        heads, more = more, {**more, "num_heads": more["num_heads"] + 1, "num_key_value_heads": more["num_heads"] + 1}
    left = target - operations({**model, "attention": heads}, length)
    one = operations({**model, "feed_forward": {**dense, "width": dense["width"] + 1}}, length) - operations(
        model, length
    )
    return {"attention": heads, "feed_forward": {**dense, "width": dense["width"] + round(left / one)}}


def shapes(model: dict[str, Any], length: int, only: str | None) -> dict[str, dict[str, Any]]:
    """What each arm changes in the model, by name."""
    arms: dict[str, dict[str, Any]] = {PLAIN: {}}
    if only != "exits":
        for name, awake in DENDRITES.items():
            arms[name] = {"dendrites": {"num_dendrites": 4, "num_awake": awake}}
        most = operations({**model, **arms["dendrites-2-of-4"]}, length)
        arms[EQUAL_PLAIN] = of_equal_compute(model, most, length)
    if only != "dendrites":
        arms["exits"] = {"exits": EXITS}
        arms["exits-no-dropout"] = {"exits": {**EXITS, "layer_dropout": 0.0}}
    return arms


def exit_cost(model: dict[str, Any], length: int, steps: int) -> float:
    """Operations of a training step with exits over those without: one head more, and rows that pass layers by."""
    shape = PragnosiaConfig(**{**model, "exits": EXITS})
    counted = account(shape, precision="float32", context=length)
    layer = (counted.operations_per_token - 2 * counted.head_matrix_parameters) / shape.num_hidden_layers
    rates = [sum(dropout_rates(shape.exits, step, steps, shape.num_hidden_layers)) for step in range(steps)]
    extra = 2 * counted.head_matrix_parameters - layer * sum(rates) / steps
    return 1 + extra / counted.operations_per_token


def written(folder: Path, base: dict[str, Any], arms: dict[str, dict[str, Any]]) -> list[Path]:
    """One configuration file per arm."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.yaml" for name in arms]
    for path, shape in zip(paths, arms.values(), strict=True):
        path.write_text(yaml.safe_dump({**base, "model": {**base["model"], **shape}}, sort_keys=False), "utf-8")
    return paths


def trained(asked: argparse.Namespace, books: Path) -> dict[str, Any]:
    """Run the comparison, and the arm that trains for as many operations; everything by arm."""
    base = yaml.safe_load(CONFIG.read_text("utf-8"))
    length = base["batch"]["sequence_length"]
    arms = shapes(base["model"], length, asked.only)
    folder = asked.out.with_name(asked.out.name + "-arms")
    given = {"data": [str(books)], "seeds": asked.seeds}
    report = compare(
        written(folder, base, arms), out=asked.out, overrides=[f"steps={asked.steps}"], sweep=Sweep(), **given
    ).to_dict()
    found = {arm["name"]: arm for arm in report["arms"]}
    if "exits" in found:
        steps = round(asked.steps / exit_cost(base["model"], length, asked.steps))
        best = found["exits"]["learning_rate"] / base["optimiser"]["learning_rate"]
        fewer = compare(
            written(folder, base, {EQUAL_COMPUTE: arms["exits"]}), out=asked.out.with_name(asked.out.name + "-equal"),
            overrides=[f"steps={steps}"], sweep=Sweep(multiples=(best,)), **given,
        ).to_dict()  # fmt: skip
        found[EQUAL_COMPUTE] = fewer["arms"][0] | {"steps": steps}
    return {"seeds": asked.seeds, "steps": asked.steps, "tokens": report["tokens"], "arms": list(found.values())}


def known(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Arms of a benchmark by name: this one's as just trained, another's as its JSON beside this file has them."""
    path = Path(__file__).with_name(f"{name}.json")
    if name != CONFIG.stem:
        values = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    compared = values.get("quality", values)
    return {arm["name"]: arm for arm in compared.get("arms", [])}


def told(arm: dict[str, Any]) -> str:
    """Bits per byte over seeds."""
    return f"{arm['bits_per_byte']['mean']:.4f} +- {arm['bits_per_byte']['std']:.4f}"


def main() -> None:
    """Train what is asked for, gather what others measured, and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--only", choices=["dendrites", "exits"])
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    named = os.environ.get("PRAGNOSIA_DATA")
    kept = CONFIG.with_suffix(".json")
    values = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    if not asked.table:
        if not named or not (Path(named) / BOOKS).is_file():
            print(f"skipped: PRAGNOSIA_DATA names no folder with {BOOKS}")
            return
        fresh = trained(asked, Path(named) / BOOKS)
        names = {arm["name"] for arm in fresh["arms"]}
        same = all(values.get(key) == fresh[key] for key in ("seeds", "steps"))
        others = [arm for arm in values.get("arms", []) if same and arm["name"] not in names]
        values = {**fresh, "arms": [*fresh["arms"], *others]}
    rows = []
    for mechanism, against, source, ours, theirs in ROWS:
        arms = known(source, values)
        if ours not in arms or theirs not in arms:
            continue
        one, other = arms[ours], arms[theirs]
        gap = one["bits_per_byte"]["mean"] - other["bits_per_byte"]["mean"]
        compute = one["operations_per_token"] / other["operations_per_token"]
        rows.append([mechanism, against, told(one), told(other), f"{gap:+.4f}", f"{compute:.2f}x", f"{source}.json"])
    header = ["mechanism", "against", "with, bits/byte", "without", "difference", "operations", "from"]
    values = {key: value for key, value in values.items() if key not in ("question", "machine", "rows")}
    publish("What each mechanism brings (below 0) or costs, on held-out text", header, rows,
            {**values, "rows": [dict(zip(header, row, strict=True)) for row in rows]}, __file__)  # fmt: skip


if __name__ == "__main__":
    main()
