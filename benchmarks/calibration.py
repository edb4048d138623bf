"""Does calibration pay? Models packed with and without it, and what is lost on texts they were not calibrated on.

    python benchmarks/calibration.py MODEL ... --text TEXT TEXT ... [--seeds 3] [--formats int4 int3 int2 nf4]

For every seed a stretch from the first half of one text calibrates, and stretches from the second halves of all texts
are read by the source and by the packed model: mean KL divergence [nats per token] and bits per byte.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _bench import publish

from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.data import Texts, resolve
from pragnosia.inference.loading import load_model, load_tokenizer
from pragnosia.measure.calibration import calibrate
from pragnosia.quantisation.calibration import Calibration
from pragnosia.quantisation.packing import pack_model

TOKENS, WINDOW, STRETCHES = 4096, 256, 8


def halves(spec: str) -> tuple[str, str]:
    """Of a text."""
    text = "\n".join(resolve(spec).documents())
    return text[: len(text) // 2], text[len(text) // 2 :]


def stretch(text: str, characters: int, chance: random.Random) -> str:
    """From anywhere in a text."""
    at = chance.randrange(max(1, len(text) - characters))
    return text[at : at + characters]


@torch.inference_mode()
def logarithms(folder: Path, ids: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """(B, T, V) in fp32, of every text."""
    model = load_model(folder)
    return {name: model(rows, use_cache=False).logits.float().log_softmax(-1) for name, rows in ids.items()}


def measured(truth: torch.Tensor, ours: torch.Tensor, ids: torch.Tensor, num_bytes: int) -> dict[str, float]:
    """How far ours is from the source's, and how well it predicts."""
    nats = -ours[:, :-1].gather(-1, ids[:, 1:, None]).sum()
    kl = (truth.exp() * (truth - ours)).sum(-1).mean()
    return {"kl": float(kl), "bits_per_byte": float(nats) / math.log(2) / num_bytes}


def rounds(model: Path, specs: list[str], seeds: int, formats: list[str]) -> list[dict[str, Any]]:
    """Everything measured on one model."""
    print_ = blueprint(model)
    tokenizer = load_tokenizer(model, print_.config.vocab_size, print_.config.tokenizer_digest)
    texts, found = {Path(spec).name: halves(spec) for spec in specs}, []
    chance = random.Random(0)
    ids, sizes = {}, {}
    for name, (_, second) in texts.items():
        rows = [tokenizer(stretch(second, 8 * WINDOW, chance))["input_ids"][:WINDOW] for _ in range(STRETCHES)]
        ids[name] = torch.tensor(rows)
        sizes[name] = sum(len(tokenizer.decode(row[1:]).encode()) for row in rows)
    truth = logarithms(model, ids)
    for name, rows in ids.items():
        own = measured(truth[name], truth[name], rows, sizes[name])
        found.append({"format": "source", "calibrated_on": None, "seed": None, "text": name, **own})
    arms: list[tuple[str | None, int | None, Calibration | None]] = [(None, None, None)]
    for name, (first, _) in texts.items():
        for seed in range(seeds):
            piece = stretch(first, 16 * TOKENS, random.Random(seed))
            made = calibrate(model, Texts([piece]), tokens=TOKENS)
            arms.append((name, seed, replace(made, gather=partial(dict, made.gather()))))  # once for all formats
    for format_name in formats:
        for source, seed, calibration in arms:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "packed"
                pack_model(print_, out, format_name, calibration=calibration)
                for name, ours in logarithms(out, ids).items():
                    values = measured(truth[name], ours, ids[name], sizes[name])
                    found.append({"format": format_name, "calibrated_on": source, "seed": seed, "text": name, **values})
    return found


def summary(model: str, found: list[dict[str, Any]], formats: list[str]) -> list[list[Any]]:
    """A row for each format and kind of text: KL with calibration over KL without."""
    rows = []
    plain = {(entry["format"], entry["text"]): entry for entry in found if entry["calibrated_on"] is None}
    for format_name in formats:
        for kind, wanted in (("same", True), ("other", False)):
            chosen = [
                entry
                for entry in found
                if entry["format"] == format_name
                and entry["calibrated_on"] is not None
                and (entry["calibrated_on"] == entry["text"]) is wanted
            ]
            if not chosen:
                continue
            base = [plain[format_name, entry["text"]] for entry in chosen]
            source = [plain["source", entry["text"]]["bits_per_byte"] for entry in chosen]
            ratios = [entry["kl"] / other["kl"] for entry, other in zip(chosen, base, strict=True)]
            lost = [
                statistics.mean(entry["bits_per_byte"] - own for entry, own in zip(entries, source, strict=True))
                for entries in (base, chosen)
            ]
            rows.append(
                [
                    *(model, format_name, kind, f"{statistics.mean(e['kl'] for e in base):.4f}"),
                    f"{statistics.mean(e['kl'] for e in chosen):.4f}",
                    f"{statistics.mean(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})",
                    *(f"{each:+.4f}" for each in lost),
                    f"{sum(each < 1 for each in ratios)} of {len(ratios)}",
                ]
            )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--formats", nargs="+", default=["int4", "int3", "int2", "nf4"])
    args = parser.parse_args()
    found, rows = {}, []
    for model in args.models:
        found[model.name] = rounds(model, args.text, args.seeds, args.formats)
        rows += summary(model.name, found[model.name], args.formats)
    header = ["model", "format", "text", "KL plain", "calibrated", "ratio", "bits/byte lost", "calibrated", "better"]
    values = {"tokens": TOKENS, "seeds": args.seeds, "models": found}
    publish("What packing loses, plain and calibrated", header, rows, values, __file__)


if __name__ == "__main__":
    main()
