"""Does each mechanism of sleep pay? One row for each: with it, without it, at the same compute.

Trained here, in turn on the same tokens, each arm at its best rate of a sweep, three seeds; differences seed by seed:

    dendrites   4 a head with 1 and with 2 awake, against plain attention of the same heads, and against one that takes
                as many operations a token as 2 awake dendrites do: more heads, a wider feed-forward
    exits       a model that may be left after layer 2, against the same model without: equal tokens, and, since exits
                cost training, equal operations (it then trains fewer steps); and with layer dropout alone left out
    neurons     ReLU² and dReLU, whose silent neurons need not be read, against SwiGLU, which has none; equal operations

Rows of columns come from benchmarks/sleep.py, of token gates from gates.py, of what sleeps untrained (inputs, 2:4, the
dial) from untrained.py, of drafting (which changes no word: its row tells speed) from speculation.py, where their JSON
lies beside this file; how fast inputs that sleep and 2:4 are, of a larger model, from sparsify.py. `--table` trains
nothing and shows what there is. JSON beside this file; a part that is not run stays.

    python benchmarks/ablations.py [--seeds 3] [--steps 100] [--out DIR] [--only dendrites|exits|neurons] [--table]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from _arms import beside, books, by_name, chosen, gap, told, trained, with_parts
from _bench import publish, spread

from pragnosia.measure.accounting import account
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.training.compare import Sweep
from pragnosia.training.exits import dropout_rates

CONFIG = Path(__file__).with_suffix(".yaml")
PLAIN = "plain"
DENDRITES = {"dendrites-1-of-4": 1, "dendrites-2-of-4": 2}
EQUAL_PLAIN = "plain-equal-compute"
EXITS = {"layers": [2], "layer_dropout": 0.1}
EQUAL_COMPUTE = "exits-equal-compute"
GATED = ("swiglu", "drelu")

# Mechanism, what it is measured against, the JSON and its part that hold both arms, their names; where its speed is.
_COLUMNS = ("columns", "results", "decode bf16", "columns of 8", "over_dense")
_GATES = ("gates", "decoding", "gated_over_without")
_LEVELS = ("sparsify", "levels", "over_wide awake")
_CUT = ("sparsify", "packed", "over_bf16", "bf16-2:4")
ROWS: tuple[tuple[str, str, str, str, str, str, tuple[str, ...]], ...] = (
    ("columns, 95 % asleep", "dense, equal total", "sleep", "asleep", "asleep-95", "dense", _COLUMNS),
    ("columns, 95 % asleep", "dense, equal active", "sleep", "asleep", "asleep-95", "dense-of-95", ()),
    ("columns of 16", "columns of 8", "sleep", "grain", "columns-of-16", "asleep-95", ()),
    ("columns of 32", "columns of 8", "sleep", "ablations", "columns-of-32", "asleep-95", ()),
    ("columns of 64", "columns of 8", "sleep", "grain", "columns-of-64", "asleep-95", ()),
    ("competition straight through", "gated", "sleep", "straight", "straight-through", "asleep-95", ()),
    ("neurons compete in a column", "none do", "sleep", "ablations", "neurons-compete", "asleep-95", ()),
    ("router of rank 32", "full rank", "sleep", "ablations", "router-of-rank-32", "asleep-95", ()),
    ("columns as loud as dense", "scale 2", "sleep", "loudness", "asleep-95-loud", "asleep-95", ()),
    ("columns as loud as dense", "dense, equal total", "sleep", "loudness", "asleep-95-loud", "dense", ()),
    ("columns as loud as dense", "louder dense", "sleep", "loudness", "asleep-95-loud", "dense-louder", ()),
    ("balance of columns", "none", "sleep", "ablations", "asleep-95", "no-balance", ()),
    ("dendrites, 1 of 4 awake", "plain, the same heads", "ablations", "dendrites", "dendrites-1-of-4", PLAIN, ()),
    ("dendrites, 2 of 4 awake", "plain, the same heads", "ablations", "dendrites", "dendrites-2-of-4", PLAIN, ()),
    ("dendrites, 2 of 4 awake", "plain, equal compute", "ablations", "dendrites", "dendrites-2-of-4", EQUAL_PLAIN, ()),
    ("exits and layer dropout", "none, equal tokens", "ablations", "exits", "exits", PLAIN, ()),
    ("exits alone", "none, equal tokens", "ablations", "exits", "exits-no-dropout", PLAIN, ()),
    ("exits and layer dropout", "none, equal compute", "ablations", "exits", EQUAL_COMPUTE, PLAIN, ()),
    ("ReLU²", "SwiGLU, equal compute", "ablations", "neurons", PLAIN, "swiglu", ()),
    ("dReLU", "SwiGLU, equal compute", "ablations", "neurons", "drelu", "swiglu", ()),
    ("token gates, half pass", "none, equal tokens", "gates", "quality", "gated", "without", _GATES),
    ("token gates, half pass", "narrower, equal compute", "gates", "quality", "gated", "narrower", ()),
    ("inputs asleep, 0.4", "the same model", "untrained", "inputs", "level-0.4", "whole", (*_LEVELS, "0.4")),
    ("inputs asleep, 0.4", "narrower, equal compute", "untrained", "inputs", "level-0.4", "narrower-0.4", ()),
    ("inputs asleep, 0.5", "the same model", "untrained", "inputs", "level-0.5", "whole", (*_LEVELS, "0.5")),
    ("inputs asleep, 0.5", "narrower, equal compute", "untrained", "inputs", "level-0.5", "narrower-0.5", ()),
    ("inputs asleep, 0.5", "half the layers", "untrained", "inputs", "level-0.5", "shallower", ()),
    ("2:4, as it is cut", "the same model", "untrained", "pattern", "2:4", "whole", _CUT),
    ("2:4, recovered", "whole, equal tokens", "untrained", "pattern", "2:4-recovered", "whole-longer", _CUT),
    ("2:4, recovered", "narrower, equal compute", "untrained", "pattern", "2:4-recovered", "narrower-0.5-longer", ()),
    ("2:4, recovered", "half the layers", "untrained", "pattern", "2:4-recovered", "shallower-longer", ()),
    ("dial, half the columns", "all of them", "untrained", "dial", "columns-dialled", "columns", ()),
    ("dial, half the columns", "trained with half", "untrained", "dial", "columns-dialled", "columns-of-half", ()),
    ("dial, half the columns", "dense, equal compute", "untrained", "dial", "columns-dialled", "dense-of-half", ()),
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


def shapes(model: dict[str, Any], length: int) -> dict[str, dict[str, dict[str, Any]]]:
    """What each arm changes in the model, by part and name."""
    dendrites: dict[str, dict[str, Any]] = {PLAIN: {}}
    for name, awake in DENDRITES.items():
        dendrites[name] = {"dendrites": {"num_dendrites": 4, "num_awake": awake}}
    most = operations({**model, **dendrites["dendrites-2-of-4"]}, length)
    dendrites[EQUAL_PLAIN] = of_equal_compute(model, most, length)
    exits = {PLAIN: {}, "exits": {"exits": EXITS}, "exits-no-dropout": {"exits": {**EXITS, "layer_dropout": 0.0}}}
    width = round(model["feed_forward"]["width"] * 2 / 3)  # theirs are three matrices, where ReLU² has two
    gated = {name: {"feed_forward": {"width": width, "activation": name}} for name in GATED}
    return {"dendrites": dendrites, "exits": exits, "neurons": {PLAIN: {}, **gated}}


def exit_cost(model: dict[str, Any], length: int, steps: int) -> float:
    """Operations of a training step with exits over those without: one head more, and rows that pass layers by."""
    shape = PragnosiaConfig(**{**model, "exits": EXITS})
    counted = account(shape, precision="float32", context=length)
    layer = (counted.operations_per_token - 2 * counted.head_matrix_parameters) / shape.num_hidden_layers
    rates = [sum(dropout_rates(shape.exits, step, steps, shape.num_hidden_layers)) for step in range(steps)]
    extra = 2 * counted.head_matrix_parameters - layer * sum(rates) / steps
    return 1 + extra / counted.operations_per_token


def run(asked: argparse.Namespace, text: Path) -> dict[str, dict[str, Any]]:
    """What was trained, by part; the arm with exits that takes as many operations trains last."""
    base = yaml.safe_load(CONFIG.read_text("utf-8"))
    model, length = base["model"], base["batch"]["sequence_length"]
    parts = shapes(model, length)
    if asked.only is not None:
        parts = {asked.only: parts[asked.only]}
    out = asked.out if asked.only is None else asked.out.with_name(f"{asked.out.name}-{asked.only}")
    models = {name: {**model, **change} for arms in parts.values() for name, change in arms.items()}
    given: dict[str, Any] = {"text": text, "seeds": asked.seeds}
    report = trained(base, models, out=out, steps=asked.steps, **given)
    found = {name: chosen(report, list(arms)) for name, arms in parts.items()}
    if "exits" in found:
        steps = round(asked.steps / exit_cost(model, length, asked.steps))
        best = by_name(report)["exits"]["learning_rate"] / base["optimiser"]["learning_rate"]
        equal = out.with_name(out.name + "-equal")
        arm = {EQUAL_COMPUTE: models["exits"]}
        fewer = trained(base, arm, out=equal, steps=steps, sweep=Sweep(multiples=(best,)), **given)
        found["exits"]["arms"].append(fewer["arms"][0] | {"steps": steps})
    return found


def read(name: str) -> dict[str, Any]:
    """What a benchmark's JSON beside this file holds; nothing where there is none."""
    path = Path(__file__).with_name(f"{name}.json")
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def speed(place: tuple[str, ...]) -> str:
    """A ratio of decoding speeds, where it was measured."""
    found: Any = read(place[0]) if place else {}
    for key in place[1:]:
        found = found.get(key, {})
    return spread(found) if found else ""


def trained_rows(own: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Those of arms that were trained with a mechanism and without."""
    rows = []
    for mechanism, against, source, part, ours, theirs, place in ROWS:
        arms = beside(own if source == CONFIG.stem else read(source), part, "asleep")
        if ours not in arms or theirs not in arms:
            continue
        one, other = arms[ours], arms[theirs]
        compute = f"{one['operations_per_token'] / other['operations_per_token']:.2f}x"
        figures = told(one), told(other), gap(one, other), compute, speed(place)
        rows.append([mechanism, against, *figures, f"{source}.json"])
    return rows


def drafting_rows() -> list[list[str]]:
    """That of drafting, which says the same words."""
    rows, drafts = [], read("speculation")
    if "speculative" in drafts.get("arms", {}):
        said = f"{drafts['bits_per_byte']:.4f}"
        gain = spread(drafts["arms"]["speculative"]["over_plain"])
        same = said, said, "none: the same words", ""
        rows.append(["drafting by an exit", "the same model", *same, gain, "speculation.json"])
    return rows


def main() -> None:
    """Train what is asked for, gather what others measured, and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--only", choices=["dendrites", "exits", "neurons"])
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    text = None if asked.table else books()
    if text is None and not asked.table:
        return
    kept = with_parts(__file__, {} if text is None else run(asked, text))
    rows = [*trained_rows(kept), *drafting_rows()]
    header = [
        "mechanism",
        "against",
        "with, bits/byte",
        "without",
        "difference, by seed",
        "operations",
        "decoding",
        "from",
    ]
    values = {**kept, "rows": [dict(zip(header, row, strict=True)) for row in rows]}
    question = "What each mechanism brings (below 0) or costs, on held-out text"
    publish(question, header, rows, values, __file__, parts=True)


if __name__ == "__main__":
    main()
