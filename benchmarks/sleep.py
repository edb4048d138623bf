"""What does sleep cost in quality? Columns with 80, 90 and 95 % of their neurons asleep, beside dense layers.

All arms see the same tokens in the same order, each at its best learning rate (`pragnosia compare` sweeps it), over the
same seeds; differences are taken seed by seed. Five parts, which may run apart:

    asleep      against a dense model of equal total size (nobody asleep) and one of equal active size, its share of the
                router included
    grain       95 % asleep in columns of 8, of 16 (the grain of the preset braingpt-small) and of 64 (the seed's), of
                which no fewer than one in 16 can wake: 94 % asleep
    straight    competition trained straight through instead of gated (straight_through.py), 95 % asleep
    loudness    columns are at first as loud together as the dense layer they stand for: scale 2 sqrt(U / A) for A of U
                awake. Here: with scale 2, a quarter as loud at 95 % asleep; two thirds as loud; and a dense layer three
                times as loud as usual (louder.py), since what helps columns may help it, too
    ablations   the other mechanisms of columns one by one at 95 %: columns of 32, competition of neurons inside a
                column, a router of low rank, no balance

The shape is that of braingpt-small scaled to what trains here in minutes: a quarter of its width (128 of 512) and of
its heads' whole width, four of its six layers, an eighth of its vocabulary (2,048 of 16,384). As there, hidden neurons
are eight to one of the stream, 95 % of them sleep, and heads are normed. Otherwise than there, keys and values are not
shared by heads (four of 32 each, where eight of 64 share two), and columns are of 8 unless an arm says otherwise.
JSON beside this file; a part that is not run stays as it was.

    python benchmarks/sleep.py [--seeds 3] [--steps 300] [--out runs/sleep] [--only PART]
"""

from __future__ import annotations

import argparse
from math import sqrt
from pathlib import Path
from typing import Any

import louder
import straight_through
import yaml
from _arms import beside, books, by_name, chosen, gap, told, trained, with_parts
from _bench import publish

from pragnosia.kernels import ACTIVATIONS
from pragnosia.model.configuration import ColumnsConfig

CONFIG = Path(__file__).with_suffix(".yaml")
ASLEEP = (0.8, 0.9, 0.95)
FIRST, BASE, EQUAL_TOTAL = "asleep", "asleep-95", "dense"
"""The part and its arms that the other parts are measured against."""


def awake(columns: dict[str, Any], asleep: float = ASLEEP[-1]) -> dict[str, Any]:
    """The columns with so many asleep."""
    num_columns = columns["width"] // columns["column_width"]
    router = {**columns.get("thalamus", {}), "num_awake": max(1, round(num_columns * (1 - asleep)))}
    return {**columns, "thalamus": router}


def dense_of(columns: dict[str, Any]) -> int:
    """Width of a dense layer that reads as much per token as the awake columns and all gates."""
    organ = ColumnsConfig(**columns)
    gates = organ.num_units / (ACTIVATIONS[organ.activation].num_parts + 1)
    return 8 * -int(-(organ.active_width + gates) // 8)


def quieter(columns: dict[str, Any], share: float | None) -> dict[str, Any]:
    """The columns, at first this share as loud together as all would be if they were awake; None: scale 2."""
    router = columns["thalamus"]
    asleep = columns["width"] / columns["column_width"] / router["num_awake"]
    scale = 2.0 if share is None else round(2 * share * sqrt(asleep), 2)
    return {**columns, "thalamus": {**router, "scale": scale}}


def shapes(columns: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Every part's arms: their feed-forwards, by name."""
    plain = {"activation": columns.get("activation", "relu2")}
    whole = {"feed_forward": {**plain, "width": columns["width"]}}
    asleep = {EQUAL_TOTAL: whole}
    for share in ASLEEP:
        sleeping = awake(columns, share)
        asleep[f"asleep-{100 * share:.0f}"] = {"columns": sleeping}
        asleep[f"dense-of-{100 * share:.0f}"] = {"feed_forward": {**plain, "width": dense_of(sleeping)}}
    dense = {"dense-of-95": asleep["dense-of-95"]}  # a comparison has a dense arm
    best = asleep[BASE]["columns"]
    router = best["thalamus"]
    grain = {f"columns-of-{width}": awake({**columns, "column_width": width}) for width in (16, 64)}
    ablations = {
        "columns-of-32": awake({**columns, "column_width": 32}),
        "neurons-compete": {**best, "num_speaking": columns["column_width"] // 2},
        "router-of-rank-32": {**best, "thalamus": {**router, "rank": 32}},
        "no-balance": {**best, "thalamus": {**router, "balance_rate": 0.0}},
    }
    straight = {"straight-through": {**best, "thalamus": {**router, "kind": straight_through.NAME}}}
    quiet = {f"{BASE}-quiet": quieter(best, None), f"{BASE}-mid": quieter(best, 2 / 3)}
    parts = {"grain": grain, "straight": straight, "loudness": quiet, "ablations": ablations}
    others = {part: dense | {name: {"columns": one} for name, one in arms.items()} for part, arms in parts.items()}
    others["loudness"]["dense-louder"] = {**whole, "feed_forwards": louder.NAME}
    return {FIRST: asleep, **others}


def base_of(part: str, arm: str) -> str:
    """What an arm is held against, beside the dense model of equal total size."""
    if part == FIRST:
        return arm.replace("asleep", "dense-of")
    return arm.rsplit("-", 1)[0] if part == "loudness" else BASE


def rows_of(name: str, parts: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A part's arms for the table."""
    arms, rows = beside(parts, name, FIRST), []
    for arm in by_name(parts[name]).values():
        base = base_of(name, arm["name"])
        others = [arms.get(other, arm) for other in (EQUAL_TOTAL, base)]
        gaps = ["" if other is arm else gap(arm, other) for other in others]
        sizes = f"{arm['total_parameters']:,}", f"{arm['active_parameters']:,}"
        rows.append(
            [name, arm["name"], told(arm), *gaps, "" if not gaps[1] else base, *sizes, f"{arm['learning_rate']:g}"]
        )
    return rows


def main() -> None:
    """Run the comparison and keep its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/sleep"))
    parser.add_argument("--only", choices=(FIRST, "grain", "straight", "loudness", "ablations"))
    asked = parser.parse_args()
    text = books()
    if text is None:
        return
    base = yaml.safe_load(CONFIG.read_text("utf-8"))
    parts = shapes(base["model"].pop("columns"))
    if asked.only is not None:
        parts = {asked.only: parts[asked.only]}
    models = {name: {**base["model"], **shape} for arms in parts.values() for name, shape in arms.items()}
    out = asked.out if asked.only is None else asked.out.with_name(f"{asked.out.name}-{asked.only}")
    report = trained(base, models, text=text, seeds=asked.seeds, steps=asked.steps, out=out)
    kept = with_parts(__file__, {name: chosen(report, list(arms)) for name, arms in parts.items()})
    header = ["part", "arm", "bits/byte", "minus equal total, by seed", "minus the base, by seed", "base"]
    rows = [row for name in kept for row in rows_of(name, kept)]
    question = "Held-out bits per byte with neurons asleep, equal tokens"
    publish(question, [*header, "parameters", "active", "rate"], rows, kept, __file__, parts=True)


if __name__ == "__main__":
    main()
