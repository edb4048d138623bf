"""Is text that was chosen worth more than text drawn by chance? Every way of `pragnosia select` against random.

A pool of four kinds of text in unequal shares. Two small models learn from a first tenth of it, drawn by chance; one
of them looks at the rest and each way picks as many tokens again (disagreement: that of the two). The same small model
then learns from scratch from the first tenth and what was picked, as many steps for every way. Held out, and judged
apart: text in the pool's shares, and text of the four kinds in equal shares. Three seeds, differences seed by seed.

    python benchmarks/memory/choosing.py [--seeds 3] [--steps 300] [--pool 2400] [--by loss …]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _bench import publish
from _little import LENGTH, SOURCES, cut, fresh, judged, missing, rows_of, texts, tokenizer_of, told, train

from pragnosia.measure.pool import Piece, committee, look
from pragnosia.measure.selection import WAYS, select

SHARES = {"dialogue": 0.6, "encyclopedia": 0.25, "proposals": 0.1, "tales": 0.05}
DOCUMENTS = {"dialogue": 1000, "encyclopedia": 160, "proposals": 30, "tales": 30}
RATE = 4e-3
HELD = 96  # pieces of each kind


def pools(pieces: int) -> tuple[list[Piece], dict[str, list[Piece]]]:
    """The pool, kind after kind, and what is held out of each."""
    read = {name: texts(name, DOCUMENTS[name]) for name in SOURCES}
    words = tokenizer_of([text[:40_000] for some in read.values() for text in some[:60]])
    pool, held = list[Piece](), dict[str, list[Piece]]()
    for name, some in read.items():
        wanted = round(SHARES[name] * pieces)
        whole = cut(words, some)
        if len(whole) < wanted + HELD:
            raise SystemExit(f"{name} has {len(whole)} pieces, {wanted + HELD} are needed; lower --pool")
        chance = torch.Generator().manual_seed(7)
        order = torch.randperm(len(whole), generator=chance).tolist()
        held[name] = [whole[at] for at in order[:HELD]]
        pool += [whole[at] for at in order[HELD : HELD + wanted]]
    return pool, held


def measured(pool: list[Piece], held: dict[str, list[Piece]], ways: list[str], seed: int, steps: int) -> dict[str, Any]:
    """One seed: held-out losses of every way, and of the first tenth alone."""
    chance = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pool), generator=chance).tolist()
    first = [pool[at] for at in order[: len(pool) // 10]]
    rest = [pool[at] for at in order[len(pool) // 10 :]]
    budget = len(first) * LENGTH
    looking = [train(fresh(seed + k), rows_of(first), steps=steps // 2, rate=RATE, seed=seed + k) for k in (100, 200)]
    views = look(looking[0], rest, None, committee(*looking)[1])
    found, kind = {}, kinds(pool)
    for way in ways:
        choice = select(way, [LENGTH] * len(rest), budget, views, seed)
        picked = [rest[number] for number in choice.numbers]
        model = train(fresh(seed), rows_of([*first, *picked]), steps=steps, rate=RATE, seed=seed)
        by_kind = {name: judged(model, some) for name, some in held.items()}
        found[way] = {
            "as in the pool": sum(SHARES[name] * loss for name, loss in by_kind.items()),
            "in equal shares": sum(by_kind.values()) / len(by_kind),
            "picked": dict(Counter(kind[id(one)] for one in picked)),
        }
        print(f"seed {seed}: {way}: {found[way]['as in the pool']:.4f}", flush=True)
    return found


def kinds(pool: list[Piece]) -> dict[int, str]:
    """Of each piece, by identity."""
    names = [name for name, share in SHARES.items() for _ in range(round(share * len(pool)))]
    return {id(one): name for one, name in zip(pool, names, strict=False)}


def main() -> None:
    """Measure, keep, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pool", type=int, default=2400)
    parser.add_argument("--by", nargs="+", default=list(WAYS), choices=list(WAYS))
    asked = parser.parse_args()
    if (why := missing()) is not None:
        print(why)
        return
    started = time.perf_counter()
    pool, held = pools(asked.pool)
    ways = list(dict.fromkeys([*asked.by, "random"]))
    runs = [measured(pool, held, ways, seed, asked.steps) for seed in range(asked.seeds)]
    header = ["by", "as in the pool", "less random", "in equal shares", "less random", "picked of each kind"]
    rows = []
    for way in ways:
        cells: list[str] = [way]
        for text in ("as in the pool", "in equal shares"):
            mine, chance = [run[way][text] for run in runs], [run["random"][text] for run in runs]
            gaps = [a - b for a, b in zip(mine, chance, strict=True)]
            cells += [told(mine), "" if way == "random" else told(gaps)]
        cells.append(json.dumps(runs[0][way]["picked"]).replace('"', ""))
        rows.append(cells)
    values = {"seeds": asked.seeds, "steps": asked.steps, "pool": asked.pool, "shares": SHARES, "runs": runs}
    values["seconds"] = time.perf_counter() - started
    publish(
        "Held-out loss [nats/token] after learning from what was picked; below 0: better than chance",
        header,
        rows,
        values,
        __file__,
    )


if __name__ == "__main__":
    main()
