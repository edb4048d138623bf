"""Does sleep that is not trained pay at equal operations? Models put to sleep beside smaller ones, trained alike.

    inputs    `sparsify --level` on a dense SwiGLU model, against dense models that were trained with as many operations
              a token: with a narrower feed-forward, and with half of the layers (level 0.5)
    pattern   `sparsify --pattern 2:4`, as it is cut and after a short recovery, against the same smaller models; those
              beside the recovered one, and the whole model, learned from as many more tokens as recovery saw
    dial      columns, 95 % asleep, with the dial at half of the columns that usually wake, against columns that were
              trained with half of them, and against a dense model of as many operations

Arms are trained on the same tokens in the same order, each at its best rate of a sweep; all are read on the same text,
held out, by `evaluate`, and differences are taken seed by seed. ablations.py puts the rows into its table. JSON beside
this file; a part that is not run stays.

    python benchmarks/untrained.py [--seeds 3] [--steps 300] [--recover 100] [--out DIR] [--only inputs|pattern|dial]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import ablations
import sleep
import yaml
from _arms import BOOKS, books, by_name, gap, told, trained, with_parts
from _bench import publish
from gates import narrowed, operations

from pragnosia import kernels
from pragnosia.data import Source, resolve
from pragnosia.inference.loading import load_model, load_tokenizer
from pragnosia.inference.sparsity import Site, put_to_sleep, sites_of
from pragnosia.measure.accounting import account
from pragnosia.measure.evaluation import Evaluation, evaluate
from pragnosia.measure.thresholds import Examples, calibrated, examine, examples
from pragnosia.model.setting import WHOLE, Setting
from pragnosia.training.compare import Sweep
from pragnosia.training.recovery import BATCH_TOKENS, LEARNING_RATE, recover

LEVELS = (0.4, 0.5)
HALF = Setting(awake=0.5)
TOKENS, READ = 8192, 400_000  # to find thresholds on; bytes of held-out text
WHOLE_ARM, SHALLOWER, COLUMNS = "whole", "shallower", "columns"
PATTERN = "bf16-2:4"
RECOVERIES = (1, 4, 16)  # times the default rate of recovery, swept on the first seed
PARTS: dict[str, tuple[str, ...]] = {
    "inputs": (WHOLE_ARM, *(f"narrower-{level}" for level in LEVELS), SHALLOWER),
    "pattern": (WHOLE_ARM, "narrower-0.5", SHALLOWER),
    "dial": (COLUMNS, "columns-of-half", "dense-of-half"),
}
"""What each part trains."""


def shapes(model: dict[str, Any], columns: dict[str, Any], length: int) -> dict[str, dict[str, Any]]:
    """Every arm's model."""
    width = 8 * round(model["feed_forward"]["width"] / 12)  # three matrices, where ReLU² has two; 2:4 takes fours
    whole = {**model, "feed_forward": {"width": width, "activation": "swiglu"}}
    few = {**whole, "num_hidden_layers": model["num_hidden_layers"] // 2}
    in_layers = 2 * (operations(whole, length) - operations(few, length))  # keys among them: they do not sleep
    keys = 4 * length * model["attention"]["num_heads"] * model["attention"]["head_dim"] * model["num_hidden_layers"]
    arms = {WHOLE_ARM: whole, SHALLOWER: few}
    for level in LEVELS:
        target = operations(whole, length) - round(level * (in_layers - keys))
        arms[f"narrower-{level}"] = narrowed(whole, target, length)
    bare = {name: organ for name, organ in model.items() if name != "feed_forward"}
    awake = sleep.awake(columns)
    router = awake["thalamus"]
    half = {**awake, "thalamus": {**router, "num_awake": router["num_awake"] // 2}}
    dense = {"width": sleep.dense_of(half), "activation": "relu2"}
    arms |= {COLUMNS: {**bare, "columns": awake}, "columns-of-half": {**bare, "columns": half}}
    return arms | {"dense-of-half": {**bare, "feed_forward": dense}}


class Reader:
    """Reads models on text that none has learned from."""

    def __init__(self, tokenizer: Any, text: Source, length: int) -> None:
        self.tokenizer, self.text, self.length = tokenizer, text, length

    def read(self, model: Any, setting: Setting = WHOLE) -> Evaluation:
        """At a setting."""
        options: dict[str, Any] = {"context": self.length, "max_bytes": READ, "setting": setting}
        return evaluate(model, self.tokenizer, self.text, **options)

    def cost(self, model: Any, awake: float = 1.0) -> float:
        """Operations of one token of the model as it is."""
        return float(account(model, precision="float32", context=self.length, awake=awake).operations_per_token)


def asleep(reader: Reader, folder: Path, found: Examples, level: float) -> tuple[float, float]:
    """Bits per byte, operations."""
    model = load_model(folder)
    sites = calibrated(model, found.seen, level).sites
    slept = examine(model, found.held_out).asleep
    put_to_sleep(model, {name: Site(site.threshold, slept[name]) for name, site in sites.items()})
    return reader.read(model).bits_per_byte, reader.cost(model)


def pruned(
    reader: Reader, folder: Path, found: Examples, steps: int, rate: float = LEARNING_RATE
) -> tuple[float, float]:
    """The same of 2:4, as it would be stored."""
    model = load_model(folder)
    cost = reader.cost(model)
    if steps:
        recover(model, found.seen, steps, learning_rate=rate)
    for linear in sites_of(model).values():
        weight = linear.weight
        weight.data = kernels.unpack(kernels.pack(weight.data, PATTERN), linear.in_features, PATTERN)
        cost -= weight.numel()  # two operations for each of half of them
    return reader.read(model).bits_per_byte, cost


def cut(
    reader: Reader, folders: Sequence[Path], found: Examples, steps: int
) -> dict[str, Callable[[int], tuple[float, float]]]:
    """2:4 as it is cut, and recovered at the best rate of a sweep on the first seed."""
    swept = {times: pruned(reader, folders[0], found, steps, times * LEARNING_RATE)[0] for times in RECOVERIES}
    print(f"recovery, by the times of its default rate: {swept}", flush=True)
    rate = LEARNING_RATE * min(swept, key=swept.__getitem__)
    return {
        "2:4": lambda seed: pruned(reader, folders[seed], found, 0),
        "2:4-recovered": lambda seed: pruned(reader, folders[seed], found, steps, rate),
    }


def dialled(reader: Reader, folder: Path) -> tuple[float, float]:
    """The same with half of the columns; no weight differs."""
    model = load_model(folder)
    return reader.read(model, HALF).bits_per_byte, reader.cost(model, HALF.awake)


def plain(reader: Reader, folder: Path) -> tuple[float, float]:
    """The same of a model as it was trained."""
    model = load_model(folder)
    return reader.read(model).bits_per_byte, reader.cost(model)


def over_seeds(name: str, one: Callable[[int], tuple[float, float]], seeds: int) -> dict[str, Any]:
    """An arm as `compare` reports them."""
    bits, costs = zip(*(one(seed) for seed in range(seeds)), strict=True)
    spread = {"mean": mean(bits), "std": stdev(bits) if seeds > 1 else 0.0, "min": min(bits), "max": max(bits)}
    print(f"{name}: {spread['mean']:.4f}", flush=True)
    return {"name": name, "bits_per_byte": spread, "by_seed": list(bits), "operations_per_token": mean(costs)}


def run(asked: argparse.Namespace, text: Path) -> dict[str, dict[str, Any]]:
    """Train what the parts ask for, then put it to sleep and read it."""
    base = yaml.safe_load(ablations.CONFIG.read_text("utf-8"))
    columns = yaml.safe_load(sleep.CONFIG.read_text("utf-8"))["model"]["columns"]
    length = base["batch"]["sequence_length"]
    parts = PARTS if asked.only is None else {asked.only: PARTS[asked.only]}
    wanted = {name for arms in parts.values() for name in arms}
    models = {name: one for name, one in shapes(base["model"], columns, length).items() if name in wanted}
    out = asked.out if asked.only is None else asked.out.with_name(f"{asked.out.name}-{asked.only}")
    given: dict[str, Any] = {"text": text, "seeds": asked.seeds}
    report = trained(base, models, out=out, steps=asked.steps, **given)
    folders = {name: [out / name / f"seed-{seed}" for seed in range(asked.seeds)] for name in models}
    if "pattern" in parts:  # as many tokens more as recovery sees
        steps = asked.steps + round(asked.recover * BATCH_TOKENS / (base["batch"]["batch_size"] * length))
        for name in PARTS["pattern"]:
            best = by_name(report)[name]["learning_rate"] / base["optimiser"]["learning_rate"]
            more = out.with_name(f"{out.name}-longer-{name}")
            trained(base, {name: models[name]}, out=more, steps=steps, sweep=Sweep(multiples=(best,)), **given)
            folders[f"{name}-longer"] = [more / name / f"seed-{seed}" for seed in range(asked.seeds)]
    vocabulary = base["model"]["vocab_size"]
    tokenizer = load_tokenizer(next(iter(folders.values()))[0], vocabulary)
    reader = Reader(tokenizer, resolve(str(text.with_name(Path(BOOKS).name.replace("train", "valid")))), length)
    many = max(TOKENS, asked.recover * BATCH_TOKENS)
    learned = examples(tokenizer, resolve(str(text)), tokens=many, vocab_size=vocabulary, context=length)
    few = Examples(learned.seen[: TOKENS // length], learned.held_out)
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        arms: dict[str, Callable[[int], tuple[float, float]]] = {}
        for name in PARTS[part] + (tuple(f"{one}-longer" for one in PARTS[part]) if part == "pattern" else ()):
            arms[name] = lambda seed, name=name: plain(reader, folders[name][seed])
        if part == "inputs":
            for level in LEVELS:
                arms[f"level-{level}"] = lambda seed, level=level: asleep(reader, folders[WHOLE_ARM][seed], few, level)
        elif part == "pattern":
            arms |= cut(reader, folders[WHOLE_ARM], learned, asked.recover)
        else:
            arms["columns-dialled"] = lambda seed: dialled(reader, folders[COLUMNS][seed])
        measured = [over_seeds(name, one, asked.seeds) for name, one in arms.items()]
        found[part] = {"seeds": asked.seeds, "steps": asked.steps, "recover": asked.recover, "arms": measured}
    return found


AGAINST: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    *(("inputs", f"level-{level}", (WHOLE_ARM, f"narrower-{level}")) for level in LEVELS),
    ("inputs", "level-0.5", (SHALLOWER,)),
    ("pattern", "2:4", (WHOLE_ARM, "narrower-0.5", SHALLOWER)),
    ("pattern", "2:4-recovered", tuple(f"{name}-longer" for name in (WHOLE_ARM, "narrower-0.5", SHALLOWER))),
    ("dial", "columns-dialled", PARTS["dial"]),
)
"""Part, arm, and what it is measured against."""


def rows_of(parts: dict[str, dict[str, Any]]) -> list[list[str]]:
    """For the table."""
    rows = []
    for part, name, others in AGAINST:
        arms = by_name(parts.get(part, {}))
        for other in others if name in arms else ():
            one, its = arms[name], arms[other]
            share = one["operations_per_token"] / its["operations_per_token"]
            rows.append([part, name, told(one), other, told(its), gap(one, its), f"{share:.2f}x"])
    return rows


def main() -> None:
    """Run the parts and keep their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--recover", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/untrained"))
    parser.add_argument("--only", choices=tuple(PARTS))
    asked = parser.parse_args()
    text = books()
    if text is None:
        return
    kept = with_parts(__file__, run(asked, text))
    header = ["part", "arm", "bits/byte", "against", "its", "difference, by seed", "operations"]
    question = "What sleep that is not trained costs beside smaller models that were: held-out bits per byte"
    publish(question, header, rows_of(kept), kept, __file__, parts=True)


if __name__ == "__main__":
    main()
