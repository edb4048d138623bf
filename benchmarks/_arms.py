"""What benchmarks that train share: arms written down and compared, held-out figures seed by seed, parts that keep."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from pragnosia.measure.machine import machine_record
from pragnosia.training.compare import Sweep, compare
from pragnosia.training.log import LOG, read_log

BOOKS = "text_en/books_pd.train.txt.xz"


def books() -> Path | None:
    """The text that arms are trained on; a line says where it is missing."""
    named = os.environ.get("PRAGNOSIA_DATA")
    if named and (Path(named) / BOOKS).is_file():
        return Path(named) / BOOKS
    print(f"training skipped: PRAGNOSIA_DATA names no folder with {BOOKS}")
    return None


def written(folder: Path, base: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """One configuration file per arm."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.yaml" for name in models]
    for path, model in zip(paths, models.values(), strict=True):
        path.write_text(yaml.safe_dump({**base, "model": dict(model)}, sort_keys=False), "utf-8")
    return paths


def trained(
    base: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
    *,
    text: Path,
    seeds: int,
    steps: int,
    out: Path,
    sweep: Sweep | None = None,
) -> dict[str, Any]:
    """`pragnosia compare` of the arms, each at its best rate; with every seed's figure beside the means."""
    arms = written(out.with_name(out.name + "-arms"), base, models)
    report = compare(arms, data=[str(text)], seeds=seeds, out=out, overrides=[f"steps={steps}"], sweep=sweep or Sweep())
    values = report.to_dict()
    values.pop("out")
    for arm in values["arms"]:
        arm["by_seed"] = [held_out(out / arm["name"] / f"seed-{seed}") for seed in range(seeds)]
    return values


def held_out(run: Path) -> float:
    """Bits per byte at the end of a run."""
    ends = [record["validation_bits_per_byte"] for record in read_log(run / LOG) if "validation_loss" in record]
    return float(ends[-1])


def chosen(part: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A part with these arms alone."""
    return {**part, "arms": [arm for arm in part["arms"] if arm["name"] in names]}


def by_name(part: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms of a part."""
    return {arm["name"]: arm for arm in part.get("arms", [])}


def beside(parts: Mapping[str, Mapping[str, Any]], name: str, first: str) -> dict[str, dict[str, Any]]:
    """The arms of a part, and those of the `first` part that it lacks, if they were trained for as many steps."""
    part, base = parts.get(name, {}), parts.get(first, {})
    return (by_name(base) if base.get("steps") == part.get("steps") else {}) | by_name(part)


def pairs(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[float]:
    """Bits per byte, ours minus theirs, of the seeds that both ran; of runs that kept no seeds the means alone."""
    mine, its = ours.get("by_seed"), theirs.get("by_seed")
    if not mine or not its:
        return [ours["bits_per_byte"]["mean"] - theirs["bits_per_byte"]["mean"]]
    return [a - b for a, b in zip(mine, its, strict=False)]


def gap(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """The same for a table: mean, spread, and every seed's."""
    found = pairs(ours, theirs)
    if len(found) == 1:
        return f"{found[0]:+.4f}"
    return f"{mean(found):+.4f} +- {stdev(found):.4f} ({' '.join(f'{one:+.3f}' for one in found)})"


def told(arm: Mapping[str, Any]) -> str:
    """Bits per byte over seeds."""
    return f"{arm['bits_per_byte']['mean']:.4f} +- {arm['bits_per_byte']['std']:.4f}"


def with_parts(script: str, fresh: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The parts in the JSON beside a script with those just measured, each with a machine record of its own.

    A part that was measured in more steps, or in as many over more seeds or rounds, stays; a line says so.
    """
    path = Path(script).with_suffix(".json")
    kept: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    kept = {name: part for name, part in kept.items() if isinstance(part, dict) and "machine" in part}
    for name, part in fresh.items():
        older = kept.get(name)
        if older is not None and _size(older) > _size(part):
            print(f"{name}: kept as of {older['machine']['date']}, of more steps, seeds or rounds than now")
        else:
            kept[name] = {"machine": machine_record(), **part}
    return kept


def _size(part: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(part.get(name, 0)) for name in ("steps", "seeds", "rounds"))
