"""After a night, with the store gone: what does a model still know, and what did that cost it elsewhere?

A small model with long-term memory (sleep.yaml) is trained on books, taught made-up facts (_facts.py), and put to sleep
with `pragnosia sleep`. Beside it the same facts are learned by low-rank adapters (`tuning.lora`, all linear layers) and
by all weights but the table, AdamW, on the same tokens of the same lessons in the same batches, at several rates; each
stops when it knows as many facts as sleep left known, and the rate that then costs least is told; where none gets there
in its epochs, the one that knows most. Known: the answer follows the lesson's beginning at once, greedily. Old text:
loss on held-out books, of which neither arm saw anything; the slots' use and the bound were measured on others. With
--rehearse the other arms learn as many windows of the text that sleep looked at as lessons, in the same steps. JSON
beside this file.

    PRAGNOSIA_DATA=... python benchmarks/memory/sleep.py [MODEL] [--facts 100] [--seeds 3] [--rehearse]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
import torch.nn.functional as F
from _bench import publish
from _facts import Fact, facts

from pragnosia import Pragnosia
from pragnosia.apps.cli import main as pragnosia
from pragnosia.data import Texts, documents
from pragnosia.inference.loading import load_model, load_tokenizer
from pragnosia.inference.teaching import Teacher
from pragnosia.training.replay import ReplayConfig, Script, losses, old_loss
from pragnosia.training.sleep import HELD_OUT, old_text, sleep
from pragnosia.tuning.configuration import LoraConfig
from pragnosia.tuning.lora import attach

LEARNED, OLD = "text_en/books_pd.train.txt.xz", "text_en/books_pd.valid.txt.xz"
TRAINED_ON, LOOKED_AT, MEASURED_ON = 6_000_000, 200_000, 200_000
"""Characters of books: to learn, for sleep to look at, to measure on."""
RATES = {"LoRA": (3e-3, 1e-2, 3e-2), "all weights": (1e-4, 3e-4, 1e-3)}
RANK, BATCH, WITHIN = 16, 8, 16


def main() -> None:
    """Every seed, every arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=Path("runs/sleep"))
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=120, help="at most, of each arm")
    parser.add_argument("--bound", type=float, default=0.2, help="of sleep: nats per token on the text it looks at")
    parser.add_argument("--rehearse", action="store_true")
    asked = parser.parse_args()
    data = Path(os.environ.get("PRAGNOSIA_DATA", "."))
    if not (data / LEARNED).is_file():
        print(f"skipped: PRAGNOSIA_DATA names no folder with {LEARNED}")
        return
    if not (asked.model / "config.json").is_file():
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "books.txt"
            text.write_text(beginning(data / LEARNED, 0, TRAINED_ON), "utf-8")
            config = str(Path(__file__).with_suffix(".yaml"))
            assert pragnosia(["train", config, "--data", str(text), "--out", str(asked.model)]) == 0
    looked_at = beginning(data / OLD, 0, LOOKED_AT)
    measured_on = beginning(data / OLD, LOOKED_AT, MEASURED_ON)
    runs = [one_seed(asked, seed, looked_at, measured_on) for seed in range(asked.seeds)]
    rows = []
    for arm in runs[0]:
        found = [run[arm] for run in runs]
        cells = [
            " / ".join("-" if one[name] is None else f"{one[name]:{form}}" for one in found)
            for name, form in FORMS.items()
        ]
        ratios = [run["sleep"]["rise"] / run[arm]["rise"] for run in runs if run[arm]["rise"] > 0]
        rows.append([arm, *cells, f"{statistics.mean(ratios):.2f}" if len(ratios) == len(runs) else "-"])
    header = ["arm", *FORMS, "sleep's rise / its"]
    about = {"model": asked.model.name, "facts": asked.facts, "rehearse": asked.rehearse, "bound": asked.bound}
    publish("Facts known without a store, by how they were learned; seed by seed", header, rows, about | {"runs": runs},
            __file__)  # fmt: skip


FORMS = {"known": ".3f", "paraphrases": ".3f", "rise": "+.4f", "rate": "g", "epochs": "d", "seconds": ".0f"}


def one_seed(asked: argparse.Namespace, seed: int, looked_at: str, measured_on: str) -> dict[str, Any]:
    """One set of facts."""
    given = facts(asked.facts, 100 + seed)
    model: Any = load_model(asked.model, torch.float32)
    shape = model.config
    tokenizer = load_tokenizer(asked.model, shape.vocab_size, shape.tokenizer_digest)
    windows = old_text(tokenizer, Texts([looked_at], "looked at"), shape)[HELD_OUT:]
    measured = old_text(tokenizer, Texts([measured_on], "measured on"), shape)
    before = old_loss(model, measured)
    with tempfile.TemporaryDirectory() as folder:
        text, store, out = (Path(folder) / name for name in ("old.txt", "store", "rested"))
        text.write_text(looked_at, "utf-8")
        Pragnosia.from_pretrained(asked.model, store=store).remembering.teach([fact.lesson for fact in given])
        config = ReplayConfig(bound=asked.bound, rounds=asked.epochs, seed=seed)
        report = sleep(asked.model, out, store=store, data=[str(text)], config=config, keep_store=False)
        rested = load_model(out, torch.float32)
        known, asked_otherwise = recalled(rested, tokenizer, given), paraphrased(out, given)
        rise = old_loss(rested, measured) - before
    found = {
        "before": values(recalled(model, tokenizer, given), paraphrased(asked.model, given), 0.0),
        "sleep": values(known, asked_otherwise, rise, config.rate, report.rounds, report.seconds)
        | {"ended": report.ended, "slots": report.slots_written, "rise where it looked": report.old_loss
           - report.old_loss_before},
    }  # fmt: skip
    print(f"seed {seed}: sleep {found['sleep']}", flush=True)
    case = Case(asked, seed, given, tokenizer, known, windows, measured, before)
    tries: dict[str, list[dict[str, Any]]] = {}
    for arm, rates in RATES.items():
        tries[arm] = [learned(case, arm, rate) for rate in rates]
        reached = [one for one in tries[arm] if one["known"] >= known]
        found[arm] = min(reached or tries[arm], key=lambda one: one["rise"] if reached else -one["known"])
        found[arm]["as many known"] = bool(reached)  # else the rate that knows most, when its epochs are over
        found[arm]["tries"] = [{key: one[key] for key in ("rate", "known", "rise")} for one in tries[arm]]
        print(f"seed {seed}: {arm} {found[arm]}", flush=True)
    return found


@dataclass(frozen=True)
class Case:
    """What the other arms of a seed are given."""

    asked: argparse.Namespace
    seed: int
    given: Sequence[Fact]
    tokenizer: Any
    known: float
    """By sleep."""
    windows: Sequence[torch.Tensor]
    measured: Sequence[torch.Tensor]
    before: float


def learned(case: Case, arm: str, rate: float) -> dict[str, Any]:
    """An arm of gradient descent, epoch by epoch until it knows as much."""
    torch.manual_seed(case.seed)
    began = time.perf_counter()
    model: Any = load_model(case.asked.model, torch.float32)
    if arm == "LoRA":
        weights = list(attach(model, LoraConfig(rank=RANK, alpha=2.0 * RANK, targets=("attention", "dense"))).values())
    else:
        weights = [weight for weight in model.parameters() if weight is not model.model.hippocampus.rows]
        model.model.hippocampus.rows.requires_grad_(False)
    optimiser = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    script = script_of(model, case.tokenizer, case.given)
    draw = torch.Generator().manual_seed(case.seed)
    known, epoch = 0.0, 0
    while known < case.known and epoch < case.asked.epochs:
        epoch += 1
        parts = list(script.batches(range(len(script)), BATCH))
        for at in torch.randperm(len(parts), generator=draw).tolist():
            loss = losses(model, *script.batch(parts[at])).mean()
            if case.asked.rehearse:
                drawn = torch.randint(len(case.windows), (BATCH,), generator=draw).tolist()
                some = torch.stack([case.windows[one] for one in drawn])
                hidden = model.model(some[:, :-1], use_cache=False).last_hidden_state
                loss = loss + F.cross_entropy(model.lm_head(hidden).flatten(0, 1), some[:, 1:].flatten())
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
        known = recalled(model, case.tokenizer, case.given)
    rise = old_loss(model, case.measured) - case.before
    return values(known, None, rise, rate, epoch, time.perf_counter() - began)


def values(
    known: float, paraphrases: float | None, rise: float, rate: float = 0.0, epochs: int = 0, seconds: float = 0.0
) -> dict[str, Any]:
    """A row."""
    return {"known": known, "paraphrases": paraphrases, "rise": rise, "rate": rate, "epochs": epochs,
            "seconds": seconds}  # fmt: skip


def script_of(model: Any, tokenizer: Any, given: Sequence[Fact]) -> Script:
    """The lessons as sleep sees them, each worth the same."""
    teacher = Teacher(model, tokenizer)
    return Script.of([teacher.pieces(fact.lesson)[0].tokens for fact in given], [1.0] * len(given))


@torch.no_grad()
def recalled(model: Any, tokenizer: Any, given: Sequence[Fact]) -> float:
    """Share of the facts whose answer comes at once, as greedy speech would have it token by token."""
    right: list[bool] = []
    encoded = [(tokenizer(fact.exact)["input_ids"], tokenizer(f"{fact.exact} {fact.answer}")["input_ids"])
               for fact in given]  # fmt: skip
    by_length: Callable[[int], int] = lambda number: len(encoded[number][1])  # noqa: E731
    for _, group in itertools.groupby(sorted(range(len(given)), key=by_length), by_length):
        numbers = list(group)
        tokens = torch.tensor([encoded[number][1] for number in numbers])
        said = model.lm_head(model.model(tokens, use_cache=False).last_hidden_state).argmax(-1)
        for row, number in enumerate(numbers):
            asked = len(encoded[number][0])
            right.append(bool((said[row, asked - 1 : -1] == tokens[row, asked:]).all()))
    return statistics.mean(right)


def paraphrased(model: Path, given: Sequence[Fact]) -> float:
    """Share of other ways to ask that are answered within some tokens, without a store; of the first facts."""
    speaker = Pragnosia.from_pretrained(model, store=False)
    asked = [(question, fact.answer) for fact in given[:20] for question in fact.paraphrases]
    return statistics.mean(answer in speaker.generate(question, max_new_tokens=WITHIN) for question, answer in asked)


def beginning(path: Path, start: int, count: int) -> str:
    """Characters `start` to `start + count` of all documents of a file, end to end."""
    text = ""
    for document in documents(path):
        text += document + "\n"
        if len(text) >= start + count:
            break
    return text[start : start + count]


if __name__ == "__main__":
    main()
