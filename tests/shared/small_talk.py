"""A few questions that a tiny model can learn to answer, and where it gets its words from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM

ANSWERS = {"Who slept?": "The old cat slept.", "Who sees snow?": "The red king sees snow.", "Where?": "In Rome."}


def write_chat(path: Path) -> Path:
    """Prompts and completions, a line each."""
    rows = [{"prompt": question, "completion": answer} for question, answer in ANSWERS.items()] * 6
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def with_tokenizer(folder: Path, corner: Path) -> Path:
    """The corner's tokenizer beside a model."""
    for file in (corner / "tokenizer").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def small_model(folder: Path, corner: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Save a sparse model that knows the corner's tokens."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "attention": {"num_heads": 2, "num_key_value_heads": 1, "head_dim": 24},
        "experts": {"num_units": 6, "unit_width": 8, "thalamus": {"kind": "softmax", "num_awake": 2}},
    }
    PragnosiaForCausalLM(PragnosiaConfig(**{**shape, **changes})).to(dtype).save_pretrained(folder)
    return with_tokenizer(folder, corner)
