"""Does a model say what it was told once? 1,000 made-up facts, taught in one shot, asked for in several ways.

Exact: the lesson up to its answer; right if the answer comes at once. Paraphrases: three other ways to ask, none of
them what the mixing was tuned on (_facts.py); right if the answer is among the next 16 tokens. Elsewhere: perplexity of
text that was not taught, with the store against without. Greedy throughout. JSON beside this file.

    make demo; python benchmarks/memory/facts.py [MODEL] [--facts 1000] [--asked 200] [--seeds 3]
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bench import publish
from _facts import Fact, facts

from pragnosia import Pragnosia
from pragnosia.data.files import Files
from pragnosia.inference.teaching import Teacher
from pragnosia.measure.evaluation import evaluate

PAGES = ("README.md", "CONTRIBUTING.md", "docs/signal.md", "docs/extend.md")
"""Text that was not taught."""
WITHIN = 16
"""Tokens in which a question is to be answered."""


def main() -> None:
    """Teach, ask, and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=Path("runs/demo"))
    parser.add_argument("--facts", type=int, default=1000)
    parser.add_argument("--asked", type=int, default=200, help="of the facts, drawn by chance")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--elsewhere", type=int, default=20_000, help="bytes of text that was not taught")
    asked = parser.parse_args()
    if not (asked.model / "config.json").is_file():
        print(f"skipped: there is no model at {asked.model}; `make demo` trains one in three minutes")
        return
    runs = [one_run(asked, seed) for seed in range(asked.seeds)]
    names = list(runs[0])
    rows = [
        [name, *(f"{run[name]:.4g}" for run in runs), f"{statistics.mean(run[name] for run in runs):.4g}"]
        for name in names
    ]
    values = {"model": asked.model.name, "facts": asked.facts, "asked": asked.asked, "runs": runs}
    header = ["figure", *(f"seed {seed}" for seed in range(asked.seeds)), "mean"]
    publish("Facts taught once, none of the weights changed", header, rows, values, __file__)


def one_run(asked: argparse.Namespace, seed: int) -> dict[str, float]:
    """One set of facts."""
    given = facts(asked.facts, 100 + seed)
    some = random.Random(seed).sample(given, min(asked.asked, len(given)))
    with tempfile.TemporaryDirectory() as folder:
        speaker = Pragnosia.from_pretrained(asked.model, store=folder)
        before = recalled(speaker, some[::4])
        read, written = taught(speaker, given)
        after = recalled(speaker, some)
        intruded = intrusions(speaker, given, facts(len(some), 9000 + seed))
        plain, mixed = elsewhere(speaker, asked.elsewhere)
        store: Any = speaker.remembering.memories().store
        stats = store.stats()
    of_paraphrases = [value for name, value in after.items() if name.startswith("paraphrase ")]
    return {
        "exact [%]": 100 * after["exact"],
        "exact, first token only [%]": 100 * after["first"],
        "paraphrases [%]": 100 * statistics.mean(of_paraphrases),
        "paraphrases answered with the first word [%]": 100 * after["at once"],
        **{f"{name} [%]": 100 * value for name, value in after.items() if name.startswith(("paraphrase", "of "))},
        "questions about others, answered with a taught one's [%]": 100 * intruded,
        "exact without the store [%]": 100 * before["exact"],
        "perplexity elsewhere, without": plain,
        "perplexity elsewhere, change [%]": 100 * (mixed / plain - 1),
        "forward pass, all together [ms per fact]": 1e3 * read / len(given),
        "writing, one by one [ms per fact]": 1e3 * written / len(given),
        "bytes per fact": stats["bytes"] / stats["episodes"],
    }


def taught(speaker: Pragnosia, given: list[Fact]) -> tuple[float, float]:
    """Seconds of reading and of writing; each fact is a transaction of its own."""
    teacher = Teacher(speaker.model, speaker.tokenizer)
    began = time.perf_counter()
    episodes = teacher.read([piece for fact in given for piece in teacher.pieces(fact.lesson)], "facts")
    read = time.perf_counter() - began
    store: Any = speaker.remembering.memories(write=True).store
    began = time.perf_counter()
    for episode in episodes:
        store.write([episode])
    return read, time.perf_counter() - began


def recalled(speaker: Pragnosia, some: list[Fact]) -> dict[str, float]:
    """Shares of right answers, by the way of asking and by relation."""
    right: dict[str, list[bool]] = defaultdict(list)
    for fact in some:
        length = len(speaker.encode(f" {fact.answer}"))
        said = speaker.generate(fact.exact, max_new_tokens=length + 1).strip()
        right["exact"].append(said.startswith(fact.answer))
        right["first"].append(said[:1] == fact.answer[:1])
        for number, question in enumerate(fact.paraphrases, 1):
            answer = speaker.generate(question, max_new_tokens=WITHIN)
            hit = fact.answer in answer
            right[f"paraphrase {number}"].append(hit)
            right["at once"].append(answer.strip().startswith(fact.answer))
            right[f"of {fact.relation}"].append(hit)
    return {name: statistics.mean(hits) for name, hits in right.items()}


def intrusions(speaker: Pragnosia, given: list[Fact], unknown: list[Fact]) -> float:
    """Share of the questions about subjects that were never taught to which some lesson's answer is given."""
    answers: dict[str, set[str]] = defaultdict(set)
    for fact in given:
        answers[fact.relation].add(fact.answer)
    wrong = []
    for number, fact in enumerate(unknown):
        question = (fact.exact, *fact.paraphrases)[number % 4]
        said = speaker.generate(question, max_new_tokens=WITHIN)
        wrong.append(any(answer in said for answer in answers[fact.relation]))
    return statistics.mean(wrong)


def elsewhere(speaker: Pragnosia, size: int) -> tuple[float, float]:
    """Perplexity of text that was not taught, without and with the store."""
    root = Path(__file__).parents[2]
    texts = [text for page in PAGES for text in Files(root / page).documents()]
    plain, mixed = (
        evaluate(speaker.model, speaker.tokenizer, texts, max_bytes=size, batch_size=1, mixing=mixing).perplexity
        for mixing in (None, speaker.remembering.mixing())
    )
    return plain, mixed


if __name__ == "__main__":
    main()
