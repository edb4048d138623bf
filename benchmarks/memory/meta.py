"""Are weights that were learned by learning tasks adapted faster? Reptile and MAML against plain training.

A task is a text: a document of one of four kinds. Every arm trains the same small model on as many tokens of the same
rows, one document a row, by `rule: backprop`, `reptile`, `fomaml` or `maml`; outer learning rates are swept alike. Then
documents that nobody trained on: the first k pieces of a row are learned by k steps of plain gradient descent, the last
is the exam; the step size is swept for each arm, plain training's too, on documents that are neither. Loss of the exam
before and after. Three seeds, differences seed by seed.

    python benchmarks/memory/meta.py [--seeds 3] [--steps 300] [--arms backprop reptile …]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _bench import publish
from _little import SOURCES, VOCABULARY, fresh, missing, texts, tokenizer_of, told

from pragnosia import PragnosiaForCausalLM
from pragnosia.learning import learning_rule
from pragnosia.measure.passages import Passages

ARMS = ("backprop", "reptile", "fomaml", "maml")
INNER, LENGTH, BATCH, TASKS = 3, 256, 4, 48
OUTER, STEPS_OF = (2e-3, 4e-3), (0.03, 0.1, 0.3, 1.0)
INNER_RATE = 0.1
DOCUMENTS = {"dialogue": 700, "encyclopedia": 250, "proposals": 60, "tales": 60}


def rows(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Documents to learn, to choose by, and to be examined on; one row of each document, so that rows are tasks."""
    read = {name: texts(name, DOCUMENTS[name]) for name in SOURCES}
    words = tokenizer_of([text[:20_000] for some in read.values() for text in some[:60]])
    passages = Passages(words, VOCABULARY)
    learned, chosen, asked = [], [], []
    for some in read.values():
        ids = [torch.tensor(passages.tokens_of(text[:8000])[0]) for text in some]
        long = [one[: LENGTH + 1] for one in ids if len(one) > LENGTH]
        order = torch.randperm(len(long), generator=torch.Generator().manual_seed(7)).tolist()
        quarter = TASKS // len(SOURCES)
        asked += [long[at] for at in order[:quarter]]
        chosen += [long[at] for at in order[quarter : 2 * quarter]]
        learned += [long[at] for at in order[2 * quarter :]]
    mixed = torch.randperm(len(learned), generator=torch.Generator().manual_seed(seed))
    return torch.stack(learned)[mixed], torch.stack(chosen), torch.stack(asked)


def trained(arm: str, tasks: Tensor, *, steps: int, rate: float, seed: int) -> PragnosiaForCausalLM:
    """AdamW on the wishes of a rule."""
    inner = {} if arm == "backprop" else {"inner_steps": INNER, "inner_rate": INNER_RATE}
    model, rule = fresh(seed).train(), learning_rule(arm, told=inner)
    optimiser = torch.optim.AdamW([weight for _, weight in rule.changes(model)], lr=rate, betas=(0.9, 0.95))
    chance, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    for step in range(steps):
        while len(order) < BATCH:
            order = torch.cat((order, torch.randperm(len(tasks), generator=chance)))
        some, order = tasks[order[:BATCH]], order[BATCH:]
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / (steps / 10)) * (1 - 0.9 * step / steps)
        optimiser.zero_grad()
        lesson = rule.learn(model, some, 1.0)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rule.settle(model, [lesson])
    return model


def examined(model: PragnosiaForCausalLM, tasks: Tensor, rate: float | None) -> float:
    """Mean loss of the last piece, behind steps at `rate` on the ones before; None: behind none."""
    size = LENGTH // (INNER + 1)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    losses = []
    for row in tasks.split(1):
        pieces = [row[:, at * size : (at + 1) * size + 1] for at in range(INNER + 1)]
        for piece in pieces[:-1] if rate is not None else []:
            model.zero_grad()
            model(input_ids=piece, labels=piece, use_cache=False).loss.backward()
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.grad is not None:
                        weight -= (rate or 0.0) * weight.grad
        with torch.no_grad():
            losses.append(float(model(input_ids=pieces[-1], labels=pieces[-1], use_cache=False).loss))
            for name, weight in model.named_parameters():
                weight.copy_(before[name])
    return sum(losses) / len(losses)


def adapted(model: PragnosiaForCausalLM, chosen: Tensor) -> tuple[float, float]:
    """The step size that does best, and the loss it brings."""
    found = {rate: examined(model, chosen, rate) for rate in STEPS_OF}
    best = min(found, key=lambda rate: found[rate])
    return best, found[best]


def measured(arm: str, seeds: int, steps: int) -> dict[str, Any]:
    """Sweep the outer rate, train, choose a step, examine."""
    began = time.perf_counter()
    swept = {}
    learned, chosen, _ = rows(100)
    for rate in OUTER:
        model = trained(arm, learned, steps=max(1, steps // 3), rate=rate, seed=100)
        swept[rate] = adapted(model, chosen)[1]
    outer = min(swept, key=lambda rate: swept[rate])
    runs = []
    for seed in range(seeds):
        learned, chosen, asked = rows(seed)
        model = trained(arm, learned, steps=steps, rate=outer, seed=seed)
        step, _ = adapted(model, chosen)
        runs.append({"before": examined(model, asked, None), "after": examined(model, asked, step), "step": step})
        print(f"{arm}, seed {seed}: {runs[-1]['before']:.4f} before, {runs[-1]['after']:.4f} after", flush=True)
    return {"outer_rate": outer, "sweep": swept, "runs": runs, "seconds": time.perf_counter() - began}


def column(found: dict[str, Any], key: str) -> Sequence[float]:
    """One figure of every seed."""
    return [run[key] for run in found["runs"]]


def main() -> None:
    """Measure, keep, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    asked = parser.parse_args()
    if (why := missing()) is not None:
        print(why)
        return
    results = {arm: measured(arm, asked.seeds, asked.steps) for arm in dict.fromkeys(["backprop", *asked.arms])}
    lines = []
    for arm, found in results.items():
        gaps = [a - b for a, b in zip(column(found, "after"), column(results["backprop"], "after"), strict=True)]
        cells = [
            arm,
            told(column(found, "before")),
            told(column(found, "after")),
            "" if arm == "backprop" else told(gaps),
        ]
        lines.append([*cells, f"{found['outer_rate']:g}", f"{found['seconds']:.0f} s"])
    header = ["rule", "exam before", "exam after", "less plain", "outer rate", "took"]
    values = {"seeds": asked.seeds, "steps": asked.steps, "inner_steps": INNER, "tokens": asked.steps * BATCH * LENGTH}
    question = f"Loss [nats/token] of texts never seen, before and after {INNER} steps on their beginning"
    publish(question, header, lines, values | {"results": results}, __file__)


if __name__ == "__main__":
    main()
