"""Do working memory, a workspace and fleeting attention pay where something has to be kept in mind?

    recall   pairs of a key and a value, a gap longer than the window, then some of the keys again: the value of each
             is asked for (multi-query associative recall, Arora et al. 2023, arXiv 2312.04927), made anew for
             every step
    babi     who is where, who has what: bAbI tasks 1, 2, 6, 11, 12, 13 (Weston et al. 2015, arXiv 1502.05698), one
             question a row, stories of the test never seen

Two layers of width 64; every arm sees the same rows in the same order. Each arm's learning rate is the best of a sweep
on a seed of its own, in a third of the steps. What is told is the share of answers that are right, on rows none
learned from, mean and spread over seeds; and the same with the slots silenced in the trained model. `wider` has no
slots and a feed-forward of as many operations a token as the arm with working memory. Arms that were measured before,
at the same steps, stay in the JSON beside this file and in the table.

    python benchmarks/memory/tasks.py [--task recall|babi] [--arms full window …] [--seeds 3] [--steps N] [--table]
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _bench import publish

from pragnosia.measure.accounting import account
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import PlainCortex, initialise
from pragnosia.model.working_memory import WorkingMemory
from pragnosia.model.workspace import Workspace

BABI = "math_reasoning/babi_en_1k.train.jsonl.xz"
TASKS = ("qa1", "qa2", "qa6", "qa11", "qa12", "qa13")
IGNORED = -100
RATES = (2e-3, 4e-3, 8e-3)
SWEPT = 1 / 3
TEST_ROWS = 512

Batch = tuple[Tensor, Tensor]
"""Rows, and the answers where they stand (B, T); -100 elsewhere."""


@dataclass(frozen=True)
class Task:
    """Rows to learn from and to be asked about."""

    vocab_size: int
    length: int
    window: int
    segment: int
    steps: int
    batch_size: int
    rows: Callable[[torch.Generator, int], Batch]
    """So many rows, by this generator's choice."""
    test: Batch


def recall() -> Task:
    """Up to 6 pairs of 8 keys and 8 values, nothing, the questions: none finds its answer within the window.

    A row to learn from has 1 to 6 pairs, since matching is learned from few first; a row of the test has 6. At most 3
    are asked for: were all, the value that is left over would be the answer, which needs no matching.
    """
    pairs, questions, kinds, gap = 6, 3, 8, 12
    start = 2 * pairs + gap

    def filled(generator: torch.Generator, sizes: Tensor) -> Batch:
        count, here = len(sizes), torch.arange(pairs) < sizes[:, None]
        keys = torch.rand(count, kinds, generator=generator).argsort(1)[:, :pairs]
        values = torch.randint(kinds, 2 * kinds, (count, pairs), generator=generator)
        # those that are there in another order, then the others
        order = (torch.rand(count, pairs, generator=generator) + ~here).argsort(1)[:, :questions]
        asked, some = torch.stack((keys.gather(1, order), values.gather(1, order)), 2), here[:, :questions]
        told, nothing = torch.stack((keys, values), 2), torch.full((count, gap), 2 * kinds)
        told = told.masked_fill(~here[..., None], 2 * kinds).flatten(1)
        asked = asked.masked_fill(~some[..., None], 2 * kinds).flatten(1)
        row = torch.cat((told, nothing, asked), 1)
        answers = torch.full_like(row, IGNORED)
        answers[:, start + 1 :: 2] = row[:, start + 1 :: 2].masked_fill(~some, IGNORED)
        return row, answers

    def rows(generator: torch.Generator, count: int) -> Batch:
        return filled(generator, torch.randint(1, pairs + 1, (count,), generator=generator))

    test = filled(torch.Generator().manual_seed(10_000), torch.full((TEST_ROWS,), pairs))
    return Task(2 * kinds + 1, start + 2 * questions, 10, 6, 4000, 32, rows, test)


def babi() -> Task:
    """Stories and one question each, the end of those that are too long; every tenth story is for the test."""
    path, length = Path(os.environ["PRAGNOSIA_DATA"]) / BABI, 96
    examples, story, number = list[tuple[int, list[str], str]](), "", -1
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            one = json.loads(line)
            if one["task"] not in TASKS:
                continue
            number += not (story and one["story"].startswith(story))  # a story grows from question to question
            story = one["story"]
            words = re.findall(r"[a-z]+|[.?]", f"{story} {one['question']}".lower())
            examples.append((number, words[-(length - 1) :], one["answer"].lower()))
    known = sorted({word for _, words, answer in examples for word in (*words, answer)})
    ids = {word: at + 1 for at, word in enumerate(known)}  # 0 fills up
    table = torch.zeros(len(examples), length, dtype=torch.long)
    ends = torch.tensor([len(words) for _, words, _ in examples])
    for at, (_, words, answer) in enumerate(examples):
        table[at, : len(words) + 1] = torch.tensor([ids[word] for word in (*words, answer)])
    held_out = torch.tensor([number % 10 == 0 for number, _, _ in examples])

    def of(which: Tensor) -> Batch:
        row, end = table[which], ends[which, None]
        answers = torch.full_like(row, IGNORED)
        return row, answers.scatter(1, end, row.gather(1, end))

    learned = (~held_out).nonzero()[:, 0]

    def rows(generator: torch.Generator, count: int) -> Batch:
        return of(learned[torch.randint(len(learned), (count,), generator=generator)])

    tested = held_out.nonzero()[:, 0]
    some = torch.randperm(len(tested), generator=torch.Generator().manual_seed(1))[:TEST_ROWS]
    return Task(len(known) + 1, length, 16, 16, 1500, 32, rows, of(tested[some]))


def shapes(task: Task) -> dict[str, dict[str, Any]]:
    """What each arm changes in the model, by name."""
    window = {"layer_types": "sliding_attention"}
    slots = {"segment": task.segment, "num_heads": 4, "head_dim": 16}
    memory = {"working_memory": {"layers": [1], "num_slots": 32, **slots}}
    # Behind the first layer, so that another layer can make something of what is heard.
    space = {"workspace": {"layers": [0], "num_slots": 8, **slots}}
    arms = {
        "full": {},
        "window": window,
        "window, memory": {**window, **memory},
        "window, workspace": {**window, **space},
        "window, both": {**window, **memory, **space},
        "full, memory": memory,
        "full, fleeting": {"fleeting": {"intact": 5, "power": 1.0}},
        "full, fleeting below": {"fleeting": {"layers": [0], "intact": 5, "power": 1.0}},
    }
    cost = {name: operations(task, arms[name]) for name in ("window", "window, memory")}
    more = (cost["window, memory"] - cost["window"]) / (2 * 2 * 2 * 64)  # two layers, two matrices, width 64
    arms["window, wider"] = {**window, "feed_forward": {"width": 128 + math.ceil(more), "activation": "relu2"}}
    return arms


def config(task: Task, arm: dict[str, Any]) -> PragnosiaConfig:
    """The model of an arm."""
    base: dict[str, Any] = {
        "vocab_size": task.vocab_size,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "max_position_embeddings": task.length,
        "initializer_range": 0.05,
        "attention": {"num_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "sliding_window": task.window},
        "feed_forward": {"width": 128, "activation": "relu2"},
    }
    return PragnosiaConfig(**{**base, **arm})


def operations(task: Task, arm: dict[str, Any]) -> int:
    """Of one token, forward, at the end of a row."""
    return account(config(task, arm), precision="float32", context=task.length).operations_per_token


def made(task: Task, arm: dict[str, Any], seed: int) -> PlainCortex:
    """A model as it begins."""
    torch.manual_seed(seed)
    model = PlainCortex(config(task, arm))
    model.apply(lambda module: initialise(module, model.config))
    model.tie_weights()
    return model


def trained(task: Task, arm: dict[str, Any], *, rate: float, steps: int, seed: int) -> PlainCortex:
    """AdamW over `steps` batches, warm-up and cosine; the batches of a seed are those of every arm."""
    model = made(task, arm, seed)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm = max(1, steps // 20)
    model.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        rows, answers = task.rows(generator, task.batch_size)
        loss = model(rows, labels=answers, use_cache=False).loss
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: PlainCortex, test: Batch) -> float:
    """Share of answers that are the likeliest word."""
    rows, answers = test
    asked = answers[:, 1:] != IGNORED
    right = [
        model(part, use_cache=False).logits[:, :-1].argmax(-1) == part[:, 1:] for part in rows.split(64)
    ]  # fmt: skip
    return float(torch.cat(right)[asked].float().mean())


@contextmanager
def silenced(model: PlainCortex) -> Iterator[bool]:
    """Within it nothing is heard from slots; whether there are any."""
    organs = [module for module in model.modules() if isinstance(module, WorkingMemory | Workspace)]
    with ExitStack() as stack:
        for organ in organs:
            hook = organ.register_forward_hook(lambda _, __, out: (torch.zeros_like(out[0]), out[1]))
            stack.callback(hook.remove)
        yield bool(organs)


def measured(task: Task, arm: dict[str, Any], *, seeds: int, steps: int, rates: tuple[float, ...]) -> dict[str, Any]:
    """Sweep, train, ask."""
    started = time.perf_counter()
    swept = {}
    if len(rates) > 1:
        for rate in rates:
            model = trained(task, arm, rate=rate, steps=round(SWEPT * steps), seed=1000)
            swept[rate] = accuracy(model, task.test)
    best = max(rates, key=lambda rate: swept.get(rate, 0.0))
    right, deaf = [], []
    for seed in range(seeds):
        model = trained(task, arm, rate=best, steps=steps, seed=seed)
        right.append(accuracy(model, task.test))
        with silenced(model) as any_slots:
            deaf += [accuracy(model, task.test)] if any_slots else []
    counted = account(config(task, arm), precision="float32", context=task.length)
    return {
        "accuracy": right,
        "silenced": deaf,
        "rate": best,
        "sweep": {f"{rate:g}": value for rate, value in swept.items()},
        "steps": steps,
        "parameters": counted.total_parameters,
        "operations_per_token": counted.operations_per_token,
        "seconds": time.perf_counter() - started,
    }


def told(values: list[float]) -> str:
    """Percent over seeds."""
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} +- {100 * spread:.1f}"


def table(results: dict[str, dict[str, Any]]) -> list[list[Any]]:
    """A row for every arm that was measured."""
    rows = []
    for name, arms in results.items():
        for arm, found in arms.items():
            cost = f"{found['operations_per_token'] / 1e3:.0f}k"
            run = (cost, f"{found['rate']:g}", len(found["accuracy"]), found["steps"])
            rows.append([name, arm, told(found["accuracy"]), told(found["silenced"]), *run])
    return rows


def main() -> None:
    """Measure what is asked for, keep what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["recall", "babi"])
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    kept = Path(__file__).with_suffix(".json")
    results: dict[str, dict[str, Any]] = json.loads(kept.read_text("utf-8"))["tasks"] if kept.is_file() else {}
    header = ["task", "arm", "right, %", "slots silenced, %", "operations", "rate", "seeds", "steps"]

    def publish_all() -> None:
        publish("What is kept in mind, with slots and without", header, table(results), {"tasks": results}, __file__)

    for name, make in {"recall": recall, "babi": babi}.items():
        if asked.table or asked.task not in (None, name):
            continue
        root = os.environ.get("PRAGNOSIA_DATA")
        if name == "babi" and (not root or not (Path(root) / BABI).is_file()):
            print(f"skipped: PRAGNOSIA_DATA names no folder with {BABI}")
            continue
        task = make()
        arms = shapes(task)
        for arm in asked.arms or arms:
            steps = asked.steps or task.steps
            found = measured(task, arms[arm], seeds=asked.seeds, steps=steps, rates=tuple(asked.rates))
            results.setdefault(name, {})[arm] = found
            print(f"{name}: {arm}: {told(found['accuracy'])} % in {found['seconds']:.0f} s", flush=True)
            publish_all()
    if asked.table:
        publish_all()


if __name__ == "__main__":
    main()
