"""What does a table of a million rows cost, in training, in speaking, and in speaking with the table on disk?

A cortex of width 512 and 8 layers (random weights), two of which recall from a table of 1,024 x 1,024 rows, 4 heads of
16 rows each, beside the same cortex without: once with dense feed-forwards in their places, once with the two layers'
feed-forwards left out as far as they can be (8 neurons), so that everything the memory costs shows. Arms in turn.

training    batch 8 x 256 random tokens, our optimisers, bf16
speaking    batch 1, greedy, 96 tokens behind 32
disk        batch 1, bf16, 96 tokens a round one by one, those of the last round behind them: the words of this
            repository's own pages (each numbered by its checksum), and noise, tokens by lot; the table lies in a file
            in WORK, the plan holds a budget that leaves room for a SHARE of its rows. The rounds that fill those places
            are not counted. Beside it the same model with its table in memory, and the two without one

    python benchmarks/memory/speed.py [ROUNDS] [--only PART] [--work WORK] [--rows ROWS]

With another number of rows nothing is written beside the script.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from _bench import Arm, in_turn, median, publish, ratio, spread, timed
from decode import speaking

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM, kernels
from pragnosia.inference.budget import make_plan
from pragnosia.inference.program import Program
from pragnosia.inference.shelf import open_shelf
from pragnosia.inference.stream import UNLIMITED, build, far_rows
from pragnosia.measure.machine import machine_record
from training import training

LAYERS, RECALLING, ROWS = 8, (3, 6), 1 << 20
PROMPT, NEW, SHARES, FILLING = 32, 96, (0.25, 0.05), 24  # FILLING: rounds in which the places are taken
WARM = 3  # steps before those that are timed: in the first ones the system hands out memory page by page
SHAPE: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_hidden_layers": LAYERS,
    "attention": {"num_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "qk_norm": "head"},
    "feed_forward": {"width": 2048, "activation": "relu2"},
}
MEMORY = {"num_rows": ROWS, "num_heads": 4, "num_awake": 16, "key_width": 128}
BARE = {"experts": {"num_units": 1, "unit_width": 8, "activation": "relu2", "thalamus": {"num_awake": 1}}}


def mixed(other: str) -> list[str]:
    """Dense layers, and others where the memory is."""
    return [other if layer in RECALLING else "dense" for layer in range(LAYERS)]


ARMS: dict[str, dict[str, Any]] = {
    "memory": {"feed_forwards": mixed("memory"), "hippocampus": MEMORY},
    "dense instead": {},
    "next to nothing instead": {"feed_forwards": mixed("experts"), **BARE},
}
WITHOUT = list(ARMS)[1:]


def model(name: str) -> PragnosiaForCausalLM:
    """An arm's model."""
    torch.manual_seed(0)
    return PragnosiaForCausalLM(PragnosiaConfig(**SHAPE, **ARMS[name]))


def words() -> Iterator[int]:
    """The tokens of a text that comes again only when it is over."""
    root = Path(__file__).parents[2]
    pages = [page.read_text("utf-8") for page in (root / "README.md", *sorted((root / "docs").glob("*.md")))]
    ids = [zlib.crc32(word.encode()) % SHAPE["vocab_size"] for word in re.findall(r"\w+|[^\w\s]", " ".join(pages))]
    return cycle(ids)


def noise() -> Iterator[int]:
    """Tokens by lot."""
    lot = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randint(SHAPE["vocab_size"], (NEW,), generator=lot).tolist()


def reading(model: Any, ids: Iterator[int]) -> Arm:
    """An arm that takes token after token through the compiled step, as decoding does, without choosing them."""
    program = Program(model, model.fresh_state(1, PROMPT + NEW))
    before = list(islice(ids, PROMPT))

    def work() -> float:
        program.length = PROMPT
        for token in islice(ids, NEW):
            program(token)
            program.length += 1
        return float(NEW)

    for at, token in enumerate(before):
        program.length = at
        program(token)
    return timed(work)


@torch.inference_mode()
def on_disk(rounds: int, work: Path, models: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The table in a file, by the share of its rows that are in memory and by what is read."""
    models["memory"].save_pretrained(work / "model")
    shelf, found = open_shelf(work / "model"), {}
    whole = make_plan(shelf, UNLIMITED, interpreter=0, context=PROMPT + NEW)
    for share in SHARES:
        for what, tokens in {"text": words, "noise": noise}.items():
            budget = whole.total - int((1 - share) * whole.row_pool)
            there, plan = build(shelf, make_plan(shelf, budget, interpreter=0, context=PROMPT + NEW))
            far = far_rows(there)
            assert far is not None
            filling = reading(there, tokens())
            in_turn({"filling": filling}, rounds=FILLING, warm_up=0)
            before = far.stats()
            arms = {name: reading(one, tokens()) for name, one in models.items()}
            rates = in_turn({"on disk": filling, **arms}, rounds=rounds, warm_up=0)
            after = far.stats()
            hits, misses = after.hits - before.hits, after.misses - before.misses
            found[f"{what}, {share:.0%} of the rows here"] = {
                "rates": rates,
                "budget_bytes": budget,
                "row_slots": plan.row_slots,
                "row_hit_rate": hits / max(hits + misses, 1),
                "rows_read_per_token": misses / (rounds * NEW),
            }
            rest = {
                key: value for key, value in found[f"{what}, {share:.0%} of the rows here"].items() if key != "rates"
            }
            print(f"{what}, {share:.0%} of the rows here: {rest}", flush=True)
            del there, filling
    return found


def compared(what: str, name: str, rates: dict[str, list[float]]) -> tuple[list[list[Any]], dict[str, Any]]:
    """One arm beside those without a table: lines, and what is written."""
    rows, told = [], {"tokens_per_second": {arm: median(values) for arm, values in rates.items()}}
    for other, theirs in rates.items():
        if other == name:
            continue
        against = ratio(rates[name], theirs)
        rows.append([what, other, f"{median(rates[name]):.1f}", f"{median(theirs):.1f}", spread(against)])
        told[f"{name.replace(' ', '_')}_over_{other.replace(' ', '_')}"] = against
    return rows, told


def main(rounds: int, parts: list[str], work: Path | None, script: str) -> None:
    """Train and speak."""
    kernels.keep_freed_memory()
    models = {name: model(name) for name in ARMS}
    lines: list[list[Any]] = []
    path = Path(script).with_suffix(".json")
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    results = {part: known[part] for part in PARTS if part in known and part not in parts}
    if "training" in parts:
        arms = {name: training(one, bf16=True, steps=1) for name, one in models.items()}
        more, results["training"] = compared("training", "memory", in_turn(arms, rounds=rounds, warm_up=WARM))
        lines += more
    said = {name: one.eval().bfloat16() for name, one in models.items()}
    if "speaking" in parts:
        arms = {name: speaking(one, NEW) for name, one in said.items()}
        more, results["speaking"] = compared("speaking", "memory", in_turn(arms, rounds=rounds))
        lines += more
    if "disk" in parts:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            for what, case in on_disk(rounds, Path(folder), said).items():
                more, told = compared(f"on disk: {what}", "on disk", case.pop("rates"))
                lines += more
                results.setdefault("disk", {})[what] = told | case
    for part in parts:
        results[part]["machine"] = machine_record()
    header = ["work", "beside", "memory tok/s", "its tok/s", "with over without"]
    publish("A table of a million rows in two of eight layers", header, lines, results, script, parts=True)


PARTS = ["training", "speaking", "disk"]

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument(
        "--work", type=Path, help="a folder on the disk to be measured; default: the system's temporary one"
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    asked = parser.parse_args()
    MEMORY["num_rows"] = asked.rows
    beside = __file__ if asked.rows == ROWS else str(Path(tempfile.gettempdir()) / "speed.py")
    main(asked.rounds, [asked.only] if asked.only else PARTS, asked.work, beside)
