"""Does drafting with a model's own first layers speak faster, in the same words? And what does leaving early give?

A dense model with exits learns the default corpus (documentation and standard library of Python), less every tenth
document; half of those calibrate its exits, the other half give the prompts. Every arm continues the same prompts
greedily, one after the other in turn, in bfloat16. Words of plain decoding are what the others' are held against.

    python benchmarks/speculation.py [ROUNDS] [STEPS] [MODEL] [--threads N]

MODEL is where the run lies, or a run of this script to measure again: what was trained is not trained again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _bench import Arm, in_turn, median, publish, ratio, spread

from pragnosia import Pragnosia
from pragnosia.data import Texts, resolve
from pragnosia.inference.decode import Decoder
from pragnosia.inference.exits import Draft, Exits
from pragnosia.inference.sampling import Sampling
from pragnosia.measure.accounting import account
from pragnosia.measure.exits import calibrate_exits
from pragnosia.model.setting import WHOLE, Setting
from pragnosia.training.progress import Bar
from pragnosia.training.run_folder import REPORT
from pragnosia.training.trainer import train

PROMPTS, PROMPT, NEW = 4, 48, 128
AGREEMENT, CALIBRATED = 0.95, 2048
"""Of the words of tokens that leave early; and tokens to find that on, half of them to check it."""
CONFIG: dict[str, Any] = {
    "model": {
        "hidden_size": 640,
        "num_hidden_layers": 12,
        "max_position_embeddings": 512,
        "attention": {"num_heads": 10, "num_key_value_heads": 5, "head_dim": 64, "qk_norm": "head"},
        "feed_forward": {"width": 1792},
        "exits": {"layers": [1, 2, 3], "curriculum": "rotate", "loss_weight": 0.5, "layer_dropout": 0.1},
    },
    "tokenizer": {"vocab_size": 4096, "max_bytes": 20_000_000},
    "batch": {"batch_size": 8, "sequence_length": 128},
    "optimiser": {"name": "muon", "learning_rate": 1e-2, "weight_decay": 0.1},
    "schedule": {"warmup_steps": 20, "floor": 0.05},
    "precision": "bf16",
    "checkpoint": {"every": 200, "keep": 1},
    "logging": {"every": 10, "validate_every": 100, "validation_tokens": 30_000, "tensorboard": False},
}


def documents() -> tuple[list[str], list[str], list[str]]:
    """To learn from, to calibrate on, to continue."""
    learn: list[str] = []
    held: list[str] = []
    for number, text in enumerate(resolve("default").documents()):
        (learn if number % 10 else held).append(text)
    return learn, held[::2], held[1::2]


def learned(folder: Path, texts: Sequence[str], steps: int) -> float:
    """Train in `folder`, unless it holds a run of so many steps; bits per byte."""
    known = folder / REPORT
    if known.is_file():
        report = json.loads(known.read_text("utf-8"))
        if report["steps"] == steps:
            return float(report["bits_per_byte"])
    source = folder.parent / "learn.txt"
    folder.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("\n\n".join(texts), "utf-8")
    config = CONFIG | {"steps": steps, "data": {"sources": [str(source)]}}
    return train(config, out=folder, reporter=Bar(), resume=True).bits_per_byte


def prompts_of(speaker: Pragnosia, texts: Sequence[str]) -> list[list[int]]:
    """Beginnings of the longest few texts."""
    long = sorted(texts, key=len, reverse=True)[:PROMPTS]
    return [speaker.encode(text[len(text) // 2 :][: 20 * PROMPT])[:PROMPT] for text in long]


class Speaking:
    """An arm: all prompts once; the prompt's reading is not counted."""

    def __init__(
        self, speaker: Pragnosia, prompts: list[list[int]], setting: Setting = WHOLE, draft: Draft | None = None
    ) -> None:
        self.speaker, self.prompts, self.setting, self.draft = speaker, prompts, setting, draft
        self.said: list[list[int]] = []
        self.decoders: list[Decoder] = []

    def __call__(self) -> tuple[float, float]:
        self.said, self.decoders = [], []
        tokens, seconds = 0, 0.0
        for prompt in self.prompts:
            decoder = Decoder(self.speaker.model, PROMPT + NEW + 16, self.setting, draft=self.draft)
            decoder.read(prompt)
            words = decoder.speak(NEW, Sampling())
            said = [next(words)]
            started = time.perf_counter()
            said += words
            _ = decoder.state  # who waits catches up
            seconds += time.perf_counter() - started
            tokens += len(said) - 1
            self.said.append(said)
            self.decoders.append(decoder)
        return tokens, seconds

    def tally(self) -> dict[str, float]:
        """Layers per token and drafts, of the last round."""
        tallies = [decoder.tally for decoder in self.decoders]
        tokens, drafted = sum(tally.tokens for tally in tallies), sum(tally.drafted for tally in tallies)
        found = {"layers_per_token": sum(tally.passes for tally in tallies) / max(tokens, 1)}
        if drafted:
            found |= {"drafted": drafted, "accepted": sum(tally.accepted for tally in tallies) / drafted}
        return found

    def like(self, plain: list[list[int]]) -> float:
        """Share of words that are plain decoding's, until the first that is not."""
        same = 0
        for mine, its in zip(self.said, plain, strict=True):
            same += next((at for at, (a, b) in enumerate(zip(mine, its, strict=True)) if a != b), len(its))
        return same / sum(map(len, plain))


def arms_of(speaker: Pragnosia, prompts: list[list[int]], exits: Exits) -> dict[str, Speaking]:
    """Plain, drafting, and leaving with either memory."""
    arms = {"plain": Speaking(speaker, prompts)}
    if exits.draft is not None:
        arms["speculative"] = Speaking(speaker, prompts, draft=exits.draft)
    if exits.leave:
        arms["leaving, exact memory"] = Speaking(speaker, prompts, Setting(leave=exits.leave))
        arms["leaving, propagated memory"] = Speaking(speaker, prompts, Setting(leave=exits.leave, memory="propagated"))
    return arms


def main(rounds: int, steps: int, out: str) -> None:
    """Train or find the model, calibrate, measure."""
    learn, held, rest = documents()
    folder = Path(out)
    bits = learned(folder, learn, steps)
    speaker = Pragnosia.from_pretrained(folder, dtype=torch.bfloat16, speculate=False)
    text = Texts(held, "held out")
    exits = calibrate_exits(speaker.model, speaker.tokenizer, text, agreement=AGREEMENT, tokens=CALIBRATED)
    exits.write(folder)
    prompts = prompts_of(speaker, rest)
    speaking = arms_of(speaker, prompts, exits)
    if "speculative" not in speaking or not speaker.leaves_early:
        why = "no exit of it drafts" if speaker.leaves_early else "it speaks by its modules here (no compiler?)"
        print(f"nothing to measure with {folder}: {why}")
        return
    arms: dict[str, Arm] = dict(speaking)
    rates = in_turn(arms, rounds=rounds)
    plain = speaking["plain"].said
    rows, results = [], {}
    for name, arm in speaking.items():
        against, like = ratio(rates[name], rates["plain"]), arm.like(plain)
        results[name] = {
            "tokens_per_second": median(rates[name]),
            "over_plain": against,
            "same_words": like,
            **arm.tally(),
        }
        accepted = f"{results[name]['accepted']:.0%}" if "accepted" in results[name] else ""
        layers = results[name]["layers_per_token"] or speaker.model.config.num_hidden_layers
        rows.append([name, f"{median(rates[name]):.0f}", spread(against), f"{layers:.1f}", accepted, f"{like:.1%}"])
    assert speaking["speculative"].said == plain, "speculation changed a word"
    counted = account(speaker.model)
    values = {
        "arms": results,
        "identical_output": speaking["speculative"].said == plain,
        "calibration": asdict(exits),
        "model": {"parameters": counted.total_parameters, "bytes_per_token": counted.bytes_per_token, "config": CONFIG},
        "bits_per_byte": bits,
        "steps": steps,
        "prompts": len(prompts),
        "new": NEW,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
    }
    header = ["decoding", "tokens/s", "over plain", "layers/token", "drafts held", "same words"]
    publish("Greedy decoding with fewer layers, one trained model, bf16, batch 1", header, rows, values, __file__)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("steps", type=int, nargs="?", default=300)
    parser.add_argument("model", nargs="?", default="runs/speculation/model")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    main(asked.rounds, asked.steps, asked.model)
