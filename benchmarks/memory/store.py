"""How fast, how large and how safe is the episodic store? Writes, queries, bytes, and what kill -9 leaves.

Writes: lessons of 16 tokens, one transaction each and 64 together. Queries: the nearest 16 of many entries, keys drawn
around as many centres as an index has, queries beside stored keys; its recall is against comparing all one by one.
Recovery: a process that writes lessons and tells of each is killed after a random number of them, at a random moment;
lost is what it told of and the store has not. JSON beside this file.

    python benchmarks/memory/store.py [--entries 1000000] [--width 256] [--kills 100] [--seeds 3]
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bench import median, publish

from pragnosia.store.episode import Episode
from pragnosia.store.episodes import EpisodicStore
from pragnosia.store.neighbours import FLAT, Neighbours
from pragnosia.store.opening import FILE, Header

TOKENS = 17
"""Of a lesson, so that it has 16 entries."""
LONG = 513
"""Of one in the large store."""


def header(width: int) -> Header:
    """Of no model."""
    return Header(model="benchmark", tokenizer="benchmark", width=width, limit=1 << 40)


def lesson(number: int, keys: np.ndarray) -> Episode:
    """With a token of each kind."""
    count = len(keys) + 1
    text = " ".join(f"w{(number * 31 + at * 7) % 20_000}" for at in range(count))
    starts = np.cumsum([0, *(len(word) + 1 for word in text.split()[:-1])]).astype(np.int32)
    tokens = np.arange(number, number + count).astype(np.int32) % 32_000
    return Episode(
        text=f"{number} {text}", tokens=tokens, starts=starts, keys=keys, surprises=np.ones(count - 1, np.float16)
    )


def writes(width: int, seed: int) -> dict[str, float]:
    """Lessons a second."""
    chance = np.random.default_rng(seed)
    keys = chance.normal(size=(TOKENS - 1, width)).astype(np.float16)
    found = {}
    with tempfile.TemporaryDirectory() as folder, EpisodicStore.open(folder, header(width)) as store:
        number = 0
        for together, rounds in ((1, 200), (64, 20)):
            began = time.perf_counter()
            for _ in range(rounds):
                store.write([lesson(number + at, keys) for at in range(together)])
                number += together
            found[f"lessons written a second, {together} a transaction"] = (
                rounds * together / (time.perf_counter() - began)
            )
        found["bytes per entry, lessons of 16"] = store.used_bytes / store.num_entries
        found["bytes per entry beyond its key"] = found["bytes per entry, lessons of 16"] - 2 * width
    return found


def queries(entries: int, width: int, seed: int) -> dict[str, float]:
    """The nearest of many."""
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(1024, width)).astype(np.float32)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, EpisodicStore.open(folder, header(width)) as store:
        began = time.perf_counter()
        some = LONG - 1
        for first in range(0, entries, 64 * some):
            batch = []
            for at in range(first, min(first + 64 * some, entries), some):
                near = centres[chance.integers(0, 1024, some)]
                batch.append(lesson(at, (near + 0.7 * chance.normal(size=near.shape)).astype(np.float16)))
            store.write(batch)
        found["entries written a second, lessons of 512"] = store.num_entries / (time.perf_counter() - began)
        picked = [episode.keys[episode.id % some].astype(np.float32) for episode in store.get(range(1, 101))]
        asked = np.array(picked) + 0.2 * chance.normal(size=(len(picked), width)).astype(np.float32)
        exact = Neighbours(store, flat=1 << 62)
        began = time.perf_counter()
        indexed = Neighbours(store)
        found["making the index [s]"] = time.perf_counter() - began if entries > FLAT else 0.0
        began = time.perf_counter()
        Neighbours(store)
        found["opening it again [s]"] = time.perf_counter() - began
        answers = {}
        for name, neighbours in (("index", indexed), ("one by one", exact)):
            taken = []
            for query in asked:
                began = time.perf_counter()
                answers[name, len(taken)] = neighbours.search(query[None], 16)
                taken.append(1e3 * (time.perf_counter() - began))
            found[f"query, {name} [ms]"] = median(taken)
        shared = [
            np.isin(_places(answers["index", at]), _places(answers["one by one", at])).mean()
            for at in range(len(asked))
        ]
        found["recall of the nearest 16 [%]"] = 100 * float(np.mean(shared))
        found["bytes per entry, lessons of 512"] = store.used_bytes / store.num_entries
        found["bytes per entry of the index"] = (
            sum(p.stat().st_size for p in Path(folder).glob("neighbours.*")) / entries
        )
    return found


def _places(found: object) -> np.ndarray:
    """Episode and position as one number."""
    numbers: np.ndarray = found.episodes[0] * (1 << 20) + found.positions[0]  # type: ignore[attr-defined]
    return numbers


def recovery(kills: int, seed: int) -> dict[str, float]:
    """What is lost of what was told."""
    chance = random.Random(seed)
    lost = broken = told = 0
    opening = []
    for _ in range(kills):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--write", folder]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
                assert writer.stdout is not None
                seen = [int(writer.stdout.readline()) for _ in range(chance.randint(1, 30))]
                time.sleep(chance.uniform(0, 0.004))
                writer.send_signal(signal.SIGKILL)
                seen += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
            began = time.perf_counter()
            with EpisodicStore.open(folder, header(64)) as store:
                opening.append(1e3 * (time.perf_counter() - began))
                there = {episode.id for episode in store.after()}
                broken += store.damage() != "ok"
            lost += len(set(seen) - there)
            told += len(seen)
    return {
        "kill -9: trials": kills,
        "kill -9: lessons told of": told,
        "kill -9: of these lost": lost,
        "kill -9: stores damaged": broken,
        "kill -9: opening afterwards [ms]": statistics.median(opening),
    }


def write_until_killed(folder: str) -> None:
    """In a process of its own."""
    keys = np.random.default_rng(0).normal(size=(TOKENS - 1, 64)).astype(np.float16)
    number = 0
    with EpisodicStore.open(folder, header(64)) as store:
        while True:
            print(store.write([lesson(number, keys)]).ids[0], flush=True)
            number += 1


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.write:
        write_until_killed(asked.write)
    runs = []
    for seed in range(asked.seeds):
        run = {**writes(asked.width, seed), **queries(asked.entries, asked.width, seed)}
        runs.append(run | recovery(-(-asked.kills // asked.seeds), seed))
    rows = [[name, *(f"{run[name]:.4g}" for run in runs)] for name in runs[0]]
    values = {"entries": asked.entries, "width": asked.width, "file": FILE, "runs": runs}
    publish("The episodic store", ["figure", *(f"seed {seed}" for seed in range(asked.seeds))], rows, values, __file__)


if __name__ == "__main__":
    main()
