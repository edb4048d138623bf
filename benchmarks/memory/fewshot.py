"""Does a model learn to learn a task from examples in its context? Episodes against the same examples in mixed order.

A task gives each of four kinds of words a label of its own: `horse -> blick`. Which words are of one kind is the same
in all tasks, which label a kind has is not. Both arms train the same small model on the same examples, as many tokens
of them: as `episodes:PATH:16` brings them (data/episodes.py), 16 of one task together, or in an order drawn by chance.
Then 16 examples of tasks that nobody trained on (kinds and labels paired as never before) are read, and of each the
label is asked for. A word that was not yet said can be labelled by the others of its kind: that is told apart. Three
seeds; chance is one label in eight.

    python benchmarks/memory/fewshot.py [--seeds 3] [--steps 1500]
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _bench import publish
from _facts import made_up_words
from _little import LENGTH, VOCABULARY, fresh, tokenizer_of, told, train

from pragnosia import PragnosiaForCausalLM
from pragnosia.data import Texts, resolve

KINDS, WORDS, LABELS, SHOTS = 4, 12, 8, 16
TASKS, EACH, HELD_OUT = 1200, 4, 60
"""EACH: episodes of a task that is learned."""
RATE = 2e-3
AT = (0, 1, 3, 7, 15)
"""Examples before the one that is asked."""


def tasks_of(seed: int) -> tuple[list[list[str]], list[str], list[list[str]], list[list[str]]]:
    """Words by kind, labels, and labels by kind: of the tasks to learn, and of those held out."""
    chance = random.Random(seed)
    names = made_up_words(chance, KINDS * WORDS + LABELS)
    kinds, labels = [names[at * WORDS : (at + 1) * WORDS] for at in range(KINDS)], names[KINDS * WORDS :]
    pairings = [list(some) for some in itertools.permutations(labels, KINDS)]
    chance.shuffle(pairings)
    return kinds, labels, pairings[HELD_OUT : HELD_OUT + TASKS], pairings[:HELD_OUT]


def examples(kinds: list[list[str]], pairing: list[str], chance: random.Random) -> list[tuple[str, str]]:
    """SHOTS words of one task and their labels."""
    some = [(word, label) for words, label in zip(kinds, pairing, strict=True) for word in words]
    return [chance.choice(some) for _ in range(SHOTS)]


def line(word: str, label: str) -> str:
    """An example as it is read."""
    return f"{word} -> {label}"


def ids_of(words: Any, text: str) -> list[int]:
    """Tokens of a text and nothing around them."""
    return list(words(text, add_special_tokens=False)["input_ids"])


def learned(arm: str, seed: int, steps: int) -> tuple[PragnosiaForCausalLM, Any]:
    """A model that trained on the examples in the order of the arm, and its tokenizer."""
    chance = random.Random(1000 + seed)
    kinds, _, tasks, _ = tasks_of(seed)
    rows = [
        {"task": str(number), "text": line(*one)}
        for number, pairing in enumerate(tasks)
        for _ in range(EACH)
        for one in examples(kinds, pairing, chance)
    ]
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "tasks.jsonl"
        table.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        episodes = list(resolve(f"episodes:{table}:{SHOTS}").documents())
    mixed = [row["text"] for row in rows]
    chance.shuffle(mixed)
    dealt = ["\n".join(mixed[at : at + SHOTS]) + "\n" for at in range(0, len(mixed), SHOTS)]
    words = tokenizer_of(episodes)
    texts = Texts(episodes if arm == "episodes" else dealt).documents()
    ids = [token for text in texts for token in (*ids_of(words, text), words.eos_token_id or 0)]
    windows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    return train(fresh(seed), windows, steps=steps, rate=RATE, seed=seed), words


@torch.no_grad()
def asked(model: PragnosiaForCausalLM, words: Any, seed: int) -> dict[str, list[float]]:
    """Of held-out tasks: right labels and nats by how many examples stood before, and of words that were new."""
    chance = random.Random(2000 + seed)
    kinds, _, _, held_out = tasks_of(seed)
    right: list[list[float]] = [[] for _ in range(SHOTS)]
    nats: list[list[float]] = [[] for _ in range(SHOTS)]
    new: list[float] = []
    for pairing in held_out:
        ids: list[int] = []
        answers: list[tuple[int, int]] = []  # where the label's tokens begin, and end
        said: set[str] = set()
        firsts: list[bool] = []
        shown = examples(kinds, pairing, chance)
        for word, label in shown:
            prompt = ids_of(words, f"{word} ->")
            whole = ids_of(words, line(word, label) + "\n")
            ids += whole
            answers.append((len(ids) - len(whole) + len(prompt), len(ids) - 1))
            # of a kind that was seen, by another word
            kind = next(some for some in kinds if word in some)
            firsts.append(word not in said and any(other in said for other in kind))
            said.add(word)
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        for at, (start, stop) in enumerate(answers):
            label_ids = torch.tensor(ids[start:stop])
            before = logits[start - 1 : stop - 1]
            hit = bool((before.argmax(-1) == label_ids).all())
            right[at].append(hit)
            nats[at].append(-float(before.gather(1, label_ids[:, None]).sum()))
            if at >= SHOTS // 2 and firsts[at]:
                new.append(hit)
    return {
        "right": [sum(some) / len(some) for some in right],
        "nats": [sum(some) / len(some) for some in nats],
        "new": [sum(new) / max(1, len(new)), float(len(new))],
    }


def main() -> None:
    """Train, ask, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    given = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    for arm in ("mixed", "episodes"):
        for seed in range(given.seeds):
            began = time.perf_counter()
            model, words = learned(arm, seed, given.steps)
            found = asked(model, words, seed) | {"seconds": time.perf_counter() - began}
            results.setdefault(arm, []).append(found)
            print(f"{arm}, seed {seed}: {found['right'][-1]:.3f} right behind {SHOTS - 1} examples", flush=True)

    def column(arm: str, key: str, at: int) -> Sequence[float]:
        return [run[key][at] for run in results[arm]]

    rows = [
        [
            "episodes" if arm == "episodes" else "the same examples, mixed",
            *(told([100 * share for share in column(arm, "right", at)]) for at in AT),
            told([100 * share for share in column(arm, "new", 0)]),
            told(column(arm, "nats", SHOTS - 1)),
        ]
        for arm in results
    ]
    header = ["order", *(f"behind {at}, %" for at in AT), f"a new word, behind {SHOTS // 2} or more, %", "nats at last"]
    values = {"seeds": given.seeds, "steps": given.steps, "tasks": TASKS, "held_out": HELD_OUT, "shots": SHOTS}
    values |= {"vocabulary": VOCABULARY, "chance": 1 / LABELS, "results": results}
    publish("Labels of tasks never trained on, by examples read before", header, rows, values, __file__)


if __name__ == "__main__":
    main()
