"""Do lobes specialise? Training with labelled domains, beside the same model on the same rows without labels.

Four domains: Python code, dialogues, Korean articles, English stories. Of each domain the first documents are learned
from and the following ones held out. For each seed one model learns in three stages (`lobes:` in a configuration), the
control sees the same rows in the same order and learns without them. Then one lobe after the other is silenced and the
held-out text of every domain is read:

    contrast    mean rise of a domain's loss when the lobe of its name is silent, over the mean size of the change when
                another one is

Steering: 24 tokens are drawn from the model behind the token that documents end with, 16 times, with each lobe pushed
up by 4 and down by 4, and as it is; a naive Bayes classifier over the tokens of the training text says which domain
they are of. Told is how often that is the domain of the steered lobe.

    python benchmarks/plasticity/lobes.py [--seeds 3] [--steps 120] [--out runs/lobes]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bench import publish

from pragnosia.data.domains import read_domains
from pragnosia.data.specs import documents
from pragnosia.inference.loading import load_model, load_tokenizer
from pragnosia.measure.lobes import Ablation, ablate
from pragnosia.training.trainer import train

CONFIG = Path(__file__).with_suffix(".yaml")
TEXTS = {
    "code": "text_en/code_python.train.txt.xz",
    "dialogue": "text_en/sgd_dialogue.train.txt.xz",
    "korean": "text_ko/kowiki.valid.txt.xz",
    "language": "text_en/fairytale_stories.train.txt.xz",
}
LEARNED, HELD_OUT = 700_000, 60_000
"""Bytes of each domain, at most."""
PUSH, DRAWN, SAID = 4.0, 16, 24


def laid_out(source: Path, out: Path) -> tuple[Path, Path]:
    """Two folders with a file for each domain: to learn from, and held out."""
    learned, held_out = out / "learned", out / "held-out"
    for folder in (learned, held_out):
        folder.mkdir(parents=True, exist_ok=True)
    for domain, place in TEXTS.items():
        texts, room = list(islice(documents(source / place), 3000)), HELD_OUT
        held: list[str] = []
        while texts and room > 0:
            held.append(texts.pop()[:room])
            room -= len(held[-1].encode())
        kept = "\n<|endoftext|>\n".join(texts).encode()[:LEARNED].decode(errors="ignore")
        (learned / f"{domain}.txt").write_text(kept, "utf-8")
        (held_out / f"{domain}.txt").write_text("\n".join(held), "utf-8")
    return learned, held_out


def trained(settings: dict[str, Any], out: Path) -> Path:
    """A model directory, made unless it is there."""
    if not (out / "report.json").is_file():
        shutil.rmtree(out, ignore_errors=True)
        train(settings, out=out)
        shutil.rmtree(out / "checkpoints")
    return out


def opened(folder: Path) -> tuple[Any, Any]:
    """A model and its tokenizer."""
    model: Any = load_model(folder)
    return model, load_tokenizer(folder, int(model.config.vocab_size), model.config.tokenizer_digest)


class Judge:
    """Which domain tokens are of: the likeliest under each domain's frequencies of tokens."""

    def __init__(self, learned: Path, tokenizer: Any) -> None:
        self.names = list(TEXTS)
        counts = torch.ones(len(self.names), len(tokenizer))
        for row, name in enumerate(self.names):
            text = (learned / f"{name}.txt").read_text("utf-8")[:200_000]
            ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
            counts[row] += torch.bincount(ids, minlength=len(tokenizer))
        self.log = (counts / counts.sum(-1, keepdim=True)).log()

    def domain(self, ids: Tensor) -> str:
        return self.names[int(self.log[:, ids].sum(-1).argmax())]


@torch.inference_mode()
def drawn(model: Any, start: int, seed: int) -> Tensor:
    """(DRAWN, SAID) tokens."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.full((DRAWN, 1), start)
    for _ in range(SAID):
        logits = model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=chance)], dim=1)
    return ids[:, 1:]


def steering(model: Any, tokenizer: Any, judge: Judge, seed: int) -> dict[str, dict[str, float]]:
    """For each lobe, how often what is said is of its domain: pushed up, as it is, pushed down."""
    found: dict[str, dict[str, float]] = {}
    for lobe in judge.names:
        found[lobe] = {}
        for how, amount in (("up", PUSH), ("as it is", 0.0), ("down", -PUSH)):
            with model.steer(lobe, amount) if amount else nullcontext():
                said = drawn(model, int(tokenizer.eos_token_id), seed)
            found[lobe][how] = mean(judge.domain(ids) == lobe for ids in said)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("runs/lobes"))
    asked = parser.parse_args()
    named = os.environ.get("PRAGNOSIA_DATA")
    if named is None or not all((Path(named) / place).is_file() for place in TEXTS.values()):
        print(f"nothing to train on: PRAGNOSIA_DATA names no folder with {', '.join(TEXTS.values())}")
        return
    learned, held_out = laid_out(Path(named), asked.out)
    base = yaml.safe_load(CONFIG.read_text("utf-8")) | {"steps": asked.steps}
    texts = {name: str(learned / f"{name}.txt") for name in TEXTS}
    base["data"] = base["data"] | {"cache": str(asked.out / "data")}
    sources: dict[str, Any] = {"labelled": [str(learned)], "control": dict.fromkeys(texts.values(), 1.0)}
    arms: dict[str, Any] = {arm: {"by_seed": []} for arm in sources}
    rows = []
    for seed in range(asked.seeds):
        for arm, its in sources.items():
            settings = base | {"seed": seed, "data": base["data"] | {"sources": its}}
            if arm == "control":
                settings.pop("lobes")
            if (asked.out / "labelled-0" / "tokenizer.json").is_file():
                settings["tokenizer"] = {"path": str(asked.out / "labelled-0")}
            model, tokenizer = opened(trained(settings, asked.out / f"{arm}-{seed}"))
            found: Ablation = ablate(model, tokenizer, read_domains([str(held_out)]))
            steered = steering(model, tokenizer, Judge(learned, tokenizer), seed)
            arms[arm]["by_seed"].append({**found.to_dict(), "steering": steered})
            told = [mean(each[how] for each in steered.values()) for how in ("up", "as it is", "down")]
            contrast = "" if found.contrast is None else f"{found.contrast:.1f}"
            rows.append(
                [
                    *(arm, seed, f"{mean(found.loss):.3f}", f"{found.diagonal:+.3f}", f"{found.off_diagonal:+.3f}"),
                    *(contrast, " / ".join(f"{share:.0%}" for share in told)),
                ]
            )
    publish(
        "What a domain loses when its own lobe is silent, or another [nats per token, held out]",
        ["arm", "seed", "loss", "own silent", "another silent", "contrast", "said is of the lobe: up / as is / down"],
        rows,
        {"seeds": asked.seeds, "steps": asked.steps, "arms": arms},
        __file__,
    )


if __name__ == "__main__":
    main()
