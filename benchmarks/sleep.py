"""What does sleep cost in quality? Columns with 80, 90 and 95 % of their neurons asleep, beside dense layers.

Against each stands a dense model of equal total size (nobody asleep) and one of equal active size, its share of the
router included. All see the same tokens in the same order, each at its best learning rate (`pragnosia compare` sweeps
it), three seeds each. `--ablations` adds the mechanisms of columns one by one at 95 %: coarser columns, competition of
neurons inside a column, a router of low rank, no balance. JSON beside this file.

    python benchmarks/sleep.py [--seeds 3] [--steps 300] [--out runs/sleep] [--ablations]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import yaml
from _bench import publish

from pragnosia.kernels import ACTIVATIONS
from pragnosia.model.configuration import ColumnsConfig
from pragnosia.training.compare import Sweep, compare

CONFIG = Path(__file__).with_suffix(".yaml")
BOOKS = "text_en/books_pd.train.txt.xz"
ASLEEP = (0.8, 0.9, 0.95)
MOST = ASLEEP[-1]


def awake(columns: dict[str, Any], asleep: float) -> dict[str, Any]:
    """The columns with so many asleep."""
    num_columns = columns["width"] // columns["column_width"]
    router = {**columns.get("thalamus", {}), "num_awake": max(1, round(num_columns * (1 - asleep)))}
    return {**columns, "thalamus": router}


def dense_of(columns: dict[str, Any]) -> int:
    """Width of a dense layer that reads as much per token as the awake columns and all gates."""
    organ = ColumnsConfig(**columns)
    gates = organ.num_units / (ACTIVATIONS[organ.activation].num_parts + 1)
    return 8 * -int(-(organ.active_width + gates) // 8)


def shapes(columns: dict[str, Any], *, ablations: bool) -> dict[str, dict[str, Any]]:
    """Every arm's feed-forward, by name."""
    dense = {"activation": columns.get("activation", "relu2")}
    arms: dict[str, dict[str, Any]] = {"dense": {"feed_forward": {**dense, "width": columns["width"]}}}
    for share in ASLEEP:
        sleeping = awake(columns, share)
        arms[f"asleep-{100 * share:.0f}"] = {"columns": sleeping}
        arms[f"dense-of-{100 * share:.0f}"] = {"feed_forward": {**dense, "width": dense_of(sleeping)}}
    if ablations:
        best = awake(columns, MOST)
        router = best["thalamus"]
        arms["columns-of-32"] = {"columns": awake({**columns, "column_width": 32}, MOST)}
        arms["neurons-compete"] = {"columns": {**best, "num_speaking": columns["column_width"] // 2}}
        arms["router-of-rank-32"] = {"columns": {**best, "thalamus": {**router, "rank": 32}}}
        arms["no-balance"] = {"columns": {**best, "thalamus": {**router, "balance_rate": 0.0}}}
    return arms


def written(folder: Path, *, ablations: bool) -> list[Path]:
    """One configuration file per arm."""
    base = yaml.safe_load(CONFIG.read_text("utf-8"))
    columns = base["model"].pop("columns")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, shape in shapes(columns, ablations=ablations).items():
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump({**base, "model": {**base["model"], **shape}}, sort_keys=False), "utf-8")
    return paths


def main() -> None:
    """Run the comparison and keep its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/sleep"))
    parser.add_argument("--ablations", action="store_true")
    asked = parser.parse_args()
    named = os.environ.get("PRAGNOSIA_DATA")
    if not named or not (Path(named) / BOOKS).is_file():
        print(f"skipped: PRAGNOSIA_DATA names no folder with {BOOKS}")
        return
    arms = written(asked.out.with_name(asked.out.name + "-arms"), ablations=asked.ablations)
    report = compare(
        arms,
        data=[str(Path(named) / BOOKS)],
        seeds=asked.seeds,
        out=asked.out,
        overrides=[f"steps={asked.steps}"],
        sweep=Sweep(),
    )
    values = report.to_dict()
    values.pop("out")
    by_name = {arm.name: arm for arm in report.arms}
    rows = []
    for arm in report.arms:
        twin = by_name.get(arm.name.replace("asleep", "dense-of"))
        gaps = [
            "" if other is None or other is arm else f"{arm.bits_per_byte.mean - other.bits_per_byte.mean:+.4f}"
            for other in (by_name["dense"], twin)
        ]
        quality = f"{arm.bits_per_byte.mean:.4f} +- {arm.bits_per_byte.std:.4f}"
        sizes = f"{arm.total_parameters:,}", f"{arm.active_parameters:,}"
        rows.append([arm.name, quality, *gaps, *sizes, f"{arm.learning_rate:g}"])
    header = ["arm", "bits/byte", "against equal total", "against equal active", "parameters", "active", "rate"]
    publish("Held-out bits per byte with neurons asleep, equal tokens", header, rows, values, __file__)


if __name__ == "__main__":
    main()
