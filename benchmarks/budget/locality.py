"""How often is a woken unit here already? Our pool beside three ways to choose who goes, on five kinds of routing.

uniform   every unit of a layer is as likely as every other
zipf      the unit of rank r is 1/r as likely as the first (s = 1), each layer in an order of its own
noise     WORK/ckpt, the 8 GB mixture of random weights (made if it is not there), reading random tokens
text      the same one reading text: even where nothing was learned, tokens that come again wake the same units
trained   WORK/trained, a mixture of 384 units learned from the default corpus (trained if it is not there, some
          minutes), reading text that was held out

Ours is the real pool (kernels/pool.py): a small streamed model is steered so that exactly the routed units wake, and
its pool counts. At the shares in IN_THE_MODEL the models themselves run with that many slots, and their pools count,
too. The others are replayed on the same routes: `lru`, the longest unused goes; `lfu`, the least often used, as ours
without fading; `best`, the one that is needed last of all goes, which takes knowledge of the future (Belady 1966). The
first third of the tokens fills the slots and does not count.

usage: locality.py WORK [KIND…]. The table goes into docs/budget.md, too (_tables.py).
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bench import earlier, publish
from _engines import make_checkpoint
from _eviction import Routes, best, faded, lru
from _tables import locality, write_page
from _tokens import tokens
from transformers import AutoTokenizer
from transformers.utils import logging

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM
from pragnosia.data.standard_library import StandardLibrary
from pragnosia.inference.program import Program
from pragnosia.inference.stream import UNLIMITED, build, planned, pool_of
from pragnosia.kernels.pool import HALF_LIFE, PoolStats

ROOT = Path(__file__).parents[2]
SHARES = (0.03, 0.06, 0.09, 0.12, 0.14, 0.2, 0.26, 0.35, 0.43, 0.52, 0.7)
IN_THE_MODEL, HALF_LIVES = (0.12, 0.35), (16.0, 64.0, 256.0)
LAYERS, UNITS, AWAKE = 12, 64, 4  # of the drawn routes, as of the random checkpoint
# tokens read, and after how many the text begins anew
READING = {"uniform": (420, 420), "zipf": (420, 420), "noise": (420, 420), "text": (420, 420), "trained": (2048, 256)}
TRAINED = (
    *("model.num_hidden_layers=6", "model.experts.num_units=64", "model.experts.unit_width=64"),
    *("model.experts.thalamus.num_awake=4", "model.experts.thalamus.scale=4.0", "model.experts.lobes=null"),
    *("batch.batch_size=8", "batch.sequence_length=256", "steps=400"),
)


def drawn(kind: str) -> Routes:
    """Routes by lot."""
    lot = np.random.default_rng(7)
    odds = 1 / np.arange(1, UNITS + 1) if kind == "zipf" else np.ones(UNITS)
    orders = [lot.permutation(UNITS) for _ in range(LAYERS)]

    def woken(order: np.ndarray) -> np.ndarray:
        return order[lot.choice(UNITS, AWAKE, replace=False, p=odds / odds.sum())]

    return np.array([[woken(order) for order in orders] for _ in range(READING[kind][0])])


def folder_of(work: Path, kind: str) -> Path:
    """Where the model lies; it is made where it is missing."""
    folder = work / ("trained" if kind == "trained" else "ckpt")
    if kind != "trained":
        make_checkpoint(folder)
    elif not (folder / "config.json").is_file():
        settings = [word for setting in TRAINED for word in ("--set", setting)]
        command = [sys.executable, "-m", "pragnosia", "train", str(ROOT / "configs/demo.yaml"), "--data", "default"]
        subprocess.run([*command, "--out", str(folder), *settings], check=True)
    return folder


def held_out() -> Iterator[str]:
    """Modules of the standard library that the default corpus leaves out."""
    learned = set(StandardLibrary().documents())
    return (text for text in StandardLibrary(max_bytes=1 << 40).documents() if text not in learned)


@torch.inference_mode()
def read(folder: Path, kind: str, slots: int) -> tuple[Routes, float]:
    """Who wakes as a model reads, and the share of them that its pool of so many slots holds."""
    count, passage = READING[kind]
    if kind == "noise":
        ids = tokens(count)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer("\n".join(islice(held_out(), 8)), verbose=False)["input_ids"][:count]
    shelf, plan = planned(folder, UNLIMITED, context=passage)
    model, _ = build(shelf, replace(plan, slots=slots))
    routes, counts = [], []
    for begin in range(0, count, passage):
        program = Program(model, model.fresh_state(1, passage))
        for token in ids[begin : begin + passage]:
            program(token)
            program.length += 1
            routes.append([routing.units[0].tolist() for routing in program.routings() if routing is not None])
            counts.append(_stats(model))
    return np.array(routes), _hits(counts)


@torch.inference_mode()
def pooled(routes: Routes, units: int, slots: int) -> float:
    """The share that our pool of so many slots holds when just these units wake."""
    count, layers, awake = routes.shape
    config = PragnosiaConfig(
        vocab_size=8,
        hidden_size=32,
        num_hidden_layers=layers,
        attention={"num_heads": 1, "num_key_value_heads": 1, "head_dim": 32},
        experts={"num_units": units, "unit_width": 16, "thalamus": {"kind": "softmax", "num_awake": awake}},
        max_position_embeddings=count,
    )
    with tempfile.TemporaryDirectory() as folder:
        PragnosiaForCausalLM(config).save_pretrained(folder)
        shelf, plan = planned(folder, UNLIMITED, context=count)
        model, _ = build(shelf, replace(plan, slots=slots))
        steering = [layer.feed_forward.thalamus.steering for layer in model.model.layers]
        program, counts = Program(model, model.fresh_state(1, count)), []
        for token in routes:
            for layer, woken in enumerate(token):
                steering[layer].fill_(-math.inf)[torch.from_numpy(woken)] = 0
            program(0)
            program.length += 1
            told = [set(routing.units[0].tolist()) for routing in program.routings() if routing is not None]
            if told != [set(woken) for woken in token.tolist()]:
                raise AssertionError("other units woke than were steered to")
            counts.append(_stats(model))
    return _hits(counts)


def _stats(model: PragnosiaForCausalLM) -> PoolStats:
    pool = pool_of(model)
    assert pool is not None
    return pool.stats()


def _hits(counts: list[PoolStats]) -> float:
    """Of the last two thirds."""
    first, last = counts[len(counts) // 3 - 1], counts[-1]
    return (last.hits - first.hits) / (last.hits - first.hits + last.misses - first.misses)


def awake_again(routes: Routes) -> float:
    """The share of units that were awake at the token before, too."""
    return float((routes[1:, :, :, None] == routes[:-1, :, None, :]).any(-1).mean())


def measure(work: Path, kind: str) -> dict[str, Any]:
    """One kind of routing at every share."""
    found: dict[str, Any] = {"tokens": READING[kind][0], "in_the_model": {}, "shares": {}}
    if kind in ("uniform", "zipf"):
        units, routes = UNITS, drawn(kind)
    else:
        folder = folder_of(work, kind)
        plan = planned(folder, UNLIMITED)[1]
        units = plan.num_units // plan.streamed_layers
        for share in IN_THE_MODEL:
            routes, found["in_the_model"][f"{share}"] = read(folder, kind, round(share * plan.num_units))
            print(kind, share, "in the model", found["in_the_model"], flush=True)
    total = routes.shape[1] * units
    found["units"], found["awake"] = total, int(routes.shape[2])
    found["awake_again"] = awake_again(routes)
    for share in SHARES:
        slots = round(share * total)
        found["shares"][f"{share}"] = {
            "slots": slots,
            "ours": pooled(routes, units, slots),
            "lru": lru(routes, units, slots),
            "lfu": faded(routes, units, slots, math.inf),
            "best": best(routes, units, slots),
            "by_half_life": {f"{life:g}": faded(routes, units, slots, life) for life in HALF_LIVES},
        }
        print(kind, share, found["shares"][f"{share}"], flush=True)
    return found


def main(work: Path, kinds: list[str]) -> None:
    """Measure each kind; results of other kinds in the JSON stay."""
    torch.manual_seed(0)
    logging.disable_progress_bar()
    measured = {kind: measure(work, kind) for kind in kinds or READING}
    results = earlier(__file__, "kinds") | measured
    results = {kind: results[kind] for kind in READING if kind in results}
    values = {"kinds": results, "half_life": HALF_LIFE, "warm_up": "a third", "seed": 7}
    publish("How often is a woken unit in memory already?", *locality(values), values, __file__)
    write_page()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
