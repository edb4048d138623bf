"""What benchmarks of growth share: runs that may do so many operations and no more, and how they compare."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _bench import publish

from pragnosia.data import documents
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.training.configuration import read_config
from pragnosia.training.events import events_of
from pragnosia.training.log import LOG, read_log
from pragnosia.training.organism import Costs
from pragnosia.training.progress import Silent
from pragnosia.training.run_folder import differences
from pragnosia.training.trainer import train

CONFIG = Path(__file__).with_name("growing.yaml")
BOOKS = "text_en/books_pd.train.txt.xz"
DOCUMENTS, CHARACTERS = 8, 600_000
"""Of the books, so many and the beginning of each: as much text as these runs can read."""
RATES = (2e-3, 4e-3, 8e-3)
"""Tried for each arm with the first seed, over all of its steps; further ones where the best lies at an end."""
CONTINUITY = 0.005
"""The largest jump of the loss at a structural event that counts as none, relative."""


def base(out: Path) -> dict[str, Any] | None:
    """The configuration of all arms, on text laid beside the runs; a line says where the text is missing."""
    named = os.environ.get("PRAGNOSIA_DATA")
    if not named or not (Path(named) / BOOKS).is_file():
        print(f"skipped: PRAGNOSIA_DATA names no folder with {BOOKS}")
        return None
    out.mkdir(parents=True, exist_ok=True)
    text = out / "text.txt"
    if not text.is_file():
        some = [book[:CHARACTERS] for book in islice(documents(str(Path(named) / BOOKS)), DOCUMENTS)]
        text.write_text("\n<|endoftext|>\n".join(some) + "\n", "utf-8")
    values: dict[str, Any] = yaml.safe_load(CONFIG.read_text("utf-8"))
    values["data"] |= {"sources": [str(text)], "cache": str(out / "packed")}
    return values


def run(values: Mapping[str, Any], out: Path, *, seed: int, rate: float) -> dict[str, Any]:
    """One run, or what it came to where it has been made: loss, operations, its course, and its events."""
    given = {**values, "seed": seed, "optimiser": {**values["optimiser"], "learning_rate": rate}}
    if (out / "report.json").is_file():
        held, asked = read_config(out / "train.yaml"), read_config(given)
        if held.num_steps != asked.num_steps or any("tokenizer" not in key for key in differences(held, asked)):
            raise SystemExit(f"{out} holds a run of other settings; choose another --out")
    else:
        tokenizer = out.parent / "tokenizer"
        if tokenizer.is_dir():
            given["tokenizer"] = {"path": str(tokenizer)}
        train(given, out=out, reporter=Silent())
        if not tokenizer.is_dir():
            tokenizer.mkdir()
            for file in out.glob("tokenizer*"):
                (tokenizer / file.name).write_bytes(file.read_bytes())
    records = read_log(out / LOG)
    shape = PragnosiaConfig.from_pretrained(out)
    config = read_config(given)
    step = Costs(config.batch.tokens).step(shape, config.batch.sequence_length)
    course = [
        (record.get("operations", record["step"] * step), record["validation_bits_per_byte"])
        for record in records
        if "validation_bits_per_byte" in record
    ]
    report = json.loads((out / "report.json").read_text("utf-8"))
    events = events_of(records)
    made = {
        "bits_per_byte": report["bits_per_byte"],
        "steps": report["steps"],
        "operations": course[-1][0],
        "course": course,
        "layers": shape.num_hidden_layers,
        "units": None if shape.units is None else shape.units.num_units,
        "events": [{"step": event.step, "told": event.told, "jump": event.jump} for event in events],
    }
    told = (
        f"{out.name}: {made['bits_per_byte']:.4f} bits/byte, {made['steps']} steps, {made['operations']:.4g} operations"
    )
    print(told, flush=True)
    return made


def steps_for(values: Mapping[str, Any], shape: PragnosiaConfig, operations: float) -> int:
    """As many whole steps of a model of one shape as so many operations allow."""
    config = read_config({**values, "steps": 1})
    return int(operations // Costs(config.batch.tokens).step(shape, config.batch.sequence_length))


def tuned(
    values: Mapping[str, Any], out: Path, name: str, rates: Sequence[float] = RATES, more: int = 2
) -> tuple[float, dict[float, float]]:
    """The learning rate that is best for the first seed, and what each came to; `more` are tried beyond an end."""

    def tried(rate: float) -> float:
        return float(run(values, out / f"{name}-0-{rate:g}", seed=0, rate=rate)["bits_per_byte"])

    found = {rate: tried(rate) for rate in rates}
    best = min(found, key=lambda rate: found[rate])
    while best in (min(found), max(found)) and len(found) < len(rates) + more:
        further = best * (0.5 if best == min(found) else 2.0)
        found[further] = tried(further)
        best = min(found, key=lambda rate: found[rate])
    return best, found


def saving(grown: Mapping[str, Any], scratch: Mapping[str, Any]) -> float:
    """The share of the operations that the grown run could have left out and been as good as the other at its end.

    By its own course, between the points where it was validated; below 0 where it was not as good, then 0 is told.
    """
    target, before = scratch["bits_per_byte"], None
    for operations, loss in grown["course"]:
        if loss <= target:
            if before is None or before[1] == loss:
                return 1 - operations / scratch["operations"]
            share = (before[1] - target) / (before[1] - loss)
            return 1 - (before[0] + share * (operations - before[0])) / scratch["operations"]
        before = (operations, loss)
    return 0.0


def compared(grown: Sequence[Mapping[str, Any]], scratch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seed by seed."""
    gaps = [ours["bits_per_byte"] - theirs["bits_per_byte"] for ours, theirs in zip(grown, scratch, strict=True)]
    jumps = [abs(event["jump"]) for one in grown for event in one["events"] if event["jump"] is not None]
    return {
        "grown_less_scratch": gaps,
        "no_worse": mean(gaps) <= 0,
        "saving": [saving(ours, theirs) for ours, theirs in zip(grown, scratch, strict=True)],
        "operations_ratio": [
            ours["operations"] / theirs["operations"] for ours, theirs in zip(grown, scratch, strict=True)
        ],
        "largest_jump": max(jumps, default=0.0),
        "continuous": max(jumps, default=0.0) <= CONTINUITY,
    }


def tell(
    question: str, made: Mapping[str, Sequence[Mapping[str, Any]]], swept: Mapping[str, Any], kept: Any, script: str
) -> None:
    """Print the arms `grown` and `scratch`, seed beside seed, and write the JSON."""
    found = compared(made["grown"], made["scratch"])
    rows = [
        [name, *(" ".join(sorted({str(each) for each in column})) for column in (
            [one["layers"] if one["units"] is None else f"{one['layers']}x{one['units']}" for one in runs],
            [one["steps"] for one in runs], [f"{one['operations']:.3g}" for one in runs])),
         f"{swept[name][0]:g}", spread([one["bits_per_byte"] for one in runs])]
        for name, runs in made.items()
    ]  # fmt: skip
    rows += [
        ["grown less scratch", "", "", "", "", spread(found["grown_less_scratch"], "+.4f")],
        ["operations saved", "", "", "", "", spread([100 * share for share in found["saving"]], ".1f") + " %"],
        ["largest jump at an event", "", "", "", "", f"{100 * found['largest_jump']:.5f} %"],
    ]
    header = ["arm", "layers in the end", "steps", "operations", "learning rate", "bits/byte held out"]
    rates = {name: {"best": best, "tried": tried} for name, (best, tried) in swept.items()}
    publish(question, header, rows, {**kept, "learning_rates": rates, **found, "runs": made}, script)


def spread(values: Sequence[float], form: str = ".4f") -> str:
    """Mean and spread for a table."""
    return f"{mean(values):{form}}" + (f" +- {stdev(values):{form}}" if len(values) > 1 else "")
