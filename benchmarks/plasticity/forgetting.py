"""What does a second domain cost the first? Growth, where only newborns learn, against fine-tuning of all weights.

A mixture learns one domain (books). Then it learns another (dialogues of users with a system), in one of two ways: all
its weights are trained on; or it gets newborn units in a lobe of their own, what was there is frozen
(`optimiser.elders: 0`), and only the newborn learn. Nobody sees the first domain again. Both ways have two learning
rates; on the way they are read on held-out text of both domains at every eighth of the steps.

    forgetting          loss on the first domain after the second was learned, less the loss before   [nats per token]
    growth, told        the first domain is read with the new lobe silent: the reader knows which domain a text is of
    growth, untold      it is read as it is
    at equal loss       of fine-tuning: where its course has come as far on the second domain as growth came in the end,
                        between two readings, and with the rate that forgets least there
    at equal tokens     with the rate that is best on the second domain

    python benchmarks/plasticity/forgetting.py [--seeds 3] [--steps 300] [--further 120] [--out runs/forgetting]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from _bench import publish

from pragnosia.data import documents, train_tokenizer
from pragnosia.inference.loading import load_model, load_tokenizer
from pragnosia.plasticity.growth import add_units
from pragnosia.training.progress import Silent
from pragnosia.training.snapshot import save_model
from pragnosia.training.trainer import train

CONFIG = Path(__file__).with_suffix(".yaml")
DOMAINS = {"books": "text_en/books_pd.train.txt.xz", "dialogue": "text_en/sgd_dialogue.train.txt.xz"}
"""The first is learned first."""
LEARNED, HELD_OUT = 2_000_000, 60_000
"""Characters of each domain, at most."""
RATES = {"fine-tuned": (1e-3, 4e-3), "grown": (4e-3, 8e-3)}
READINGS = 8
UNITS, LOBE = 16, "new"

Point = tuple[int, float, float, float]
"""Steps on the second domain; loss on the first and on the second, and on the first with the new lobe silent."""


def laid_out(source: Path, out: Path) -> None:
    """Of each domain a text to learn from and one that is held out, and a tokenizer for both."""
    if (out / "tokenizer").is_dir():
        return
    for name, place in DOMAINS.items():
        held: list[str] = []
        learned: list[str] = []
        for number, text in enumerate(islice(documents(str(source / place)), 4000)):
            kept, room = (held, HELD_OUT) if number % 2 else (learned, LEARNED)
            if sum(map(len, kept)) < room:
                kept.append(text[: room // 8])
        for what, texts in (("learned", learned), ("held-out", held)):
            (out / f"{name}-{what}.txt").write_text("\n<|endoftext|>\n".join(texts) + "\n", "utf-8")
    train_tokenizer([out / f"{name}-learned.txt" for name in DOMAINS], 512, out / "tokenizer", max_bytes=1_000_000)


def opened(folder: Path) -> tuple[Any, Any]:
    """A model and its tokenizer."""
    model: Any = load_model(folder)
    return model, load_tokenizer(folder, int(model.config.vocab_size), model.config.tokenizer_digest)


@torch.inference_mode()
def read(model: Any, tokenizer: Any, out: Path) -> tuple[float, ...]:
    """The loss on held-out text of each domain."""
    found = []
    for name in DOMAINS:
        text = (out / f"{name}-held-out.txt").read_text("utf-8")
        ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
        rows = ids[: len(ids) // 64 * 64].view(-1, 64)[:256]
        found.append(float(model(input_ids=rows, labels=rows, use_cache=False).loss))
        if name == next(iter(DOMAINS)):
            first_rows = rows
    if LOBE not in model.config.units.lobes:
        return (*found, found[0])
    with model.lesion(LOBE):
        return (*found, float(model(input_ids=first_rows, labels=first_rows, use_cache=False).loss))


def first(values: Mapping[str, Any], out: Path, seed: int, steps: int) -> Path:
    """The model that has learned the first domain."""
    made = out / f"first-{seed}"
    if not (made / "report.json").is_file():
        shutil.rmtree(made, ignore_errors=True)
        data = values["data"] | {"sources": [str(out / f"{next(iter(DOMAINS))}-learned.txt")]}
        given = {**values, "data": data, "tokenizer": {"path": str(out / "tokenizer")}, "steps": steps, "seed": seed}
        train(given, out=made, reporter=Silent())
    return made


def grown(parent: Path, out: Path, seed: int) -> Path:
    """The same with newborns, that sleep."""
    made = out / f"grown-{seed}"
    if not made.is_dir():
        model, tokenizer = opened(parent)
        add_units(model, UNITS, lobe=LOBE, seed=seed)
        made.mkdir()
        save_model(model, tokenizer, made)
    return made


def second(values: Mapping[str, Any], start: Path, out: Path, *, rate: float, steps: int, elders: float) -> list[Point]:
    """The course on the second domain."""
    made = out / f"{'second' if elders else 'newborn'}-{start.name}-{rate:g}"
    if not (made / "report.json").is_file():
        shutil.rmtree(made, ignore_errors=True)
        data = values["data"] | {"sources": [str(out / f"{list(DOMAINS)[1]}-learned.txt")]}
        optimiser = values["optimiser"] | {"learning_rate": rate, "elders": elders}
        kept = {"every": steps // READINGS, "keep": READINGS}
        given = {key: value for key, value in values.items() if key != "model"}
        given |= {"start": str(start), "data": data, "optimiser": optimiser, "checkpoint": kept, "steps": steps}
        train(given, out=made, reporter=Silent())
    course: list[Point] = []
    for folder in [start, *sorted((made / "checkpoints").iterdir())]:
        losses = read(*opened(folder), out)
        step = 0 if folder == start else int(folder.name.rpartition("-")[2])
        course.append((step, *losses))
    print(f"{made.name}: " + "  ".join(f"{one:.3f}/{two:.3f}" for _, one, two, _ in course), flush=True)
    return course


def at_loss(course: Sequence[Point], target: float) -> float | None:
    """The loss on the first domain where the second's has come down to `target`; None where it never has."""
    for before, after in pairwise(course):
        if after[2] <= target < before[2]:
            share = (before[2] - target) / (before[2] - after[2])
            return before[1] + share * (after[1] - before[1])
    return None


def main() -> None:
    """Learn, learn on, read, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--further", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("runs/forgetting"))
    asked = parser.parse_args()
    named = os.environ.get("PRAGNOSIA_DATA")
    if named is None or not all((Path(named) / place).is_file() for place in DOMAINS.values()):
        print(f"skipped: PRAGNOSIA_DATA names no folder with {', '.join(DOMAINS.values())}")
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    laid_out(Path(named), asked.out)
    values = yaml.safe_load(CONFIG.read_text("utf-8"))
    values["data"] |= {"cache": str(asked.out / "packed")}
    by_seed = []
    for seed in range(asked.seeds):
        values["seed"] = seed
        parent = first(values, asked.out, seed, asked.steps)
        larger = grown(parent, asked.out, seed)
        arms: dict[str, dict[str, list[Point]]] = {name: {} for name in RATES}
        for name, rates in RATES.items():
            start, elders = (larger, 0.0) if name == "grown" else (parent, 1.0)
            for rate in rates:
                arms[name][f"{rate:g}"] = second(
                    values, start, asked.out, rate=rate, steps=asked.further, elders=elders
                )
        by_seed.append(found(arms))
    tell(by_seed, asked)


def found(arms: Mapping[str, Mapping[str, list[Point]]]) -> dict[str, Any]:
    """What one seed came to."""
    ends = {name: min(courses.values(), key=lambda course: course[-1][2]) for name, courses in arms.items()}
    before, after, reached = ends["grown"][0][1], ends["grown"][-1][1], ends["grown"][-1][2]
    as_far = [loss for course in arms["fine-tuned"].values() if (loss := at_loss(course, reached)) is not None]
    return {
        "before": before,
        "second_reached": reached,
        "forgetting": {
            "growth, told": ends["grown"][-1][3] - before,
            "growth, untold": after - before,
            "fine-tuned, at equal loss": min(as_far) - before if as_far else None,
            "fine-tuned, at equal tokens": ends["fine-tuned"][-1][1] - before,
        },
        "second_of_fine_tuned": ends["fine-tuned"][-1][2],
        "courses": arms,
    }


def tell(by_seed: Sequence[Mapping[str, Any]], asked: argparse.Namespace) -> None:
    """The table, and the JSON."""
    rows = []
    for name in by_seed[0]["forgetting"]:
        each = [one["forgetting"][name] for one in by_seed]
        if None in each:
            rows.append([name, "", " ".join("never" if one is None else f"{one:+.3f}" for one in each), ""])
            continue
        reached = [one["second_of_fine_tuned" if "tokens" in name else "second_reached"] for one in by_seed]
        told = [one["forgetting"]["growth, told"] for one in by_seed]
        share = [f"{mine / loss:.2f}" if loss > 0 else "" for mine, loss in zip(told, each, strict=True)]
        spread = stdev(each) if len(each) > 1 else 0.0
        rows.append(
            [
                *(name, f"{mean(reached):.3f}", f"{mean(each):+.3f} +- {spread:.3f}"),
                "" if name == "growth, told" else " ".join(share),
            ]
        )
    publish(
        "After a second domain: loss on the first, less what it was before [nats per token, held out]",
        ["arm", "loss on the second", "forgetting", "told growth forgets of it, by seed"],
        rows,
        {"seeds": asked.seeds, "steps": asked.steps, "further": asked.further, "by_seed": list(by_seed)},
        __file__,
    )


if __name__ == "__main__":
    main()
