"""A trained mixture of ours that is larger than a cap of half a GiB: 153 M parameters, which wake 9 M for a token.

It learns the default corpus (the documentation and the standard library of the Python that runs it) for some minutes on
one core: little, but its router has learned whom to wake for what, and spreads its load. It reads modules of the
library that were held out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

from _tokens import HELD_OUT

ROOT = Path(__file__).parents[2]
SETTINGS = (
    *("model.num_hidden_layers=6", "model.experts.num_units=128", "model.experts.unit_width=256"),
    *("model.experts.thalamus.num_awake=4", "model.experts.thalamus.scale=4.0", "model.experts.lobes=null"),
    *("batch.batch_size=8", "batch.sequence_length=128", "steps=120"),
    *("optimiser.name=adamw", "optimiser.learning_rate=2e-3", "checkpoint.every=1000", "logging.validate_every=150"),
)
MOST = 4096
"""Tokens of held-out text that are written down."""


def make_trained(folder: Path, settings: tuple[str, ...] = SETTINGS) -> None:
    """Train it where it is missing, and write down what it will read."""
    if not (folder / "config.json").is_file():
        words = [word for setting in settings for word in ("--set", setting)]
        command = [sys.executable, "-m", "pragnosia", "train", str(ROOT / "configs/demo.yaml"), "--data", "default"]
        subprocess.run([*command, "--out", str(folder), *words], check=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if not (folder / HELD_OUT).is_file():
        (folder / HELD_OUT).write_text(json.dumps(_held_out(folder)))


def _held_out(folder: Path) -> list[int]:
    """Tokens of modules that the default corpus leaves out."""
    from transformers import AutoTokenizer

    from pragnosia.data.standard_library import StandardLibrary

    learned = set(StandardLibrary().documents())
    texts = (text for text in StandardLibrary(max_bytes=1 << 40).documents() if text not in learned)
    ids: list[int] = AutoTokenizer.from_pretrained(folder)("\n".join(islice(texts, 8)), verbose=False)["input_ids"]
    return ids[:MOST]
