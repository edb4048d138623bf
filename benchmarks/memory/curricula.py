"""Does easy text first pay? Every curriculum of `pragnosia train` against the shuffled order.

One small dense model learns public-domain books, dialogues and encyclopedia articles, the same text in each arm, as
many tokens, three seeds, each arm at its best rate of a sweep: shuffled; and by document length, by rarity of tokens
and by a model's loss, competence growing by its square root over half of the run (Platanios et al. 2019). The model
whose loss says what is hard learned the shuffled text for a quarter of the steps, which is not counted.

    python benchmarks/memory/curricula.py [--seeds 3] [--steps 200] [--out runs/curricula]
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _bench import publish
from _little import told

from pragnosia.data import documents
from pragnosia.training.compare import Sweep, compare
from pragnosia.training.log import LOG, read_log
from pragnosia.training.progress import Silent
from pragnosia.training.trainer import train

CONFIG = Path(__file__).with_name("text.yaml")
PARTS = {
    "text_en/books_pd.train.txt.xz": 3,
    "text_en/sgd_dialogue.train.txt.xz": 900,
    "text_en/enwiki_new.train.txt.xz": 400,
}
"""Files, and how many documents of each are read; together a few million characters."""
WAYS = ("length", "frequency", "loss")


def text(root: Path, out: Path) -> Path:
    """The documents of all parts, in one file."""
    some = [text[:1_000_000] for name, count in PARTS.items() for text in islice(documents(str(root / name)), count)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n<|endoftext|>\n".join(some) + "\n", "utf-8")
    return out


def arms(base: dict[str, Any], teacher: Path, steps: int, folder: Path) -> list[Path]:
    """A configuration for every order, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for way in ("shuffled", *WAYS):
        order = {"by": way, "steps": max(1, steps // 2), **({"model": str(teacher)} if way == "loss" else {})}
        config = base | {"tokenizer": {"path": str(teacher)}, "curriculum": None if way == "shuffled" else order}
        paths.append(folder / f"{way}.yaml")
        paths[-1].write_text(yaml.safe_dump(config), "utf-8")
    return paths


def main() -> None:
    """Train, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/curricula"))
    asked = parser.parse_args()
    named = os.environ.get("PRAGNOSIA_DATA")
    if not named or not all((Path(named) / name).is_file() for name in PARTS):
        print(f"skipped: PRAGNOSIA_DATA names no folder with {', '.join(PARTS)}")
        return
    beside = asked.out.with_name(asked.out.name + "-arms")
    data = [str(text(Path(named), beside / "text.txt"))]
    base = yaml.safe_load(CONFIG.read_text("utf-8")) | {"steps": asked.steps}
    base["data"] = {**base["data"], "validation_fraction": 0.03}
    base["schedule"] = {**base["schedule"], "warmup_steps": max(1, asked.steps // 10)}
    base["model"] = {key: value for key, value in base["model"].items() if key != "vocab_size"}
    teacher = beside / "teacher"
    if not (teacher / "config.json").is_file():
        first = base | {"steps": max(1, asked.steps // 4), "seed": 100}
        train(first | {"schedule": {"warmup_steps": 1}}, data=data, out=teacher, reporter=Silent())
    paths: list[Path | str | Any] = list(arms(base, teacher, asked.steps, beside))
    report = compare(paths, data=data, seeds=asked.seeds, out=asked.out, sweep=Sweep()).to_dict()
    found = {
        arm["name"]: [
            read_log(asked.out / arm["name"] / f"seed-{seed}" / LOG)[-1]["validation_bits_per_byte"]
            for seed in range(asked.seeds)
        ]
        for arm in report["arms"]
    }
    rows = []
    for way, values in found.items():
        gaps = [mine - other for mine, other in zip(values, found["shuffled"], strict=True)]
        rate = next(arm["learning_rate"] for arm in report["arms"] if arm["name"] == way)
        rows.append([way, told(values), "" if way == "shuffled" else told(gaps), f"{rate:g}"])
    header = ["order", "bits/byte held out", "less shuffled", "learning rate"]
    values = {"seeds": asked.seeds, "steps": asked.steps, "tokens": report["tokens"], "bits_per_byte": found}
    publish("What comes first, and what that brings (below 0) or costs", header, rows, values, __file__)


if __name__ == "__main__":
    main()
