"""A tiny model of ours with sparse layers and a dense one; what tests of adapters and of blocks tune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "attention": {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "bias": True},
    "feed_forward": {"width": 20},
    "feed_forwards": ["experts", "dense", "experts"],
    "experts": {
        "num_units": 6,
        "unit_width": 8,
        "num_shared": 1,
        "bias": True,
        "thalamus": {"kind": "softmax", "num_awake": 2, "renormalise": True},
    },
}
DENSE: dict[str, Any] = {**SHAPE, "experts": None, "feed_forwards": None}


def made(folder: Path, kind: str = "sparse", dtype: torch.dtype = torch.float32) -> Path:
    """Save one with random biases."""
    torch.manual_seed(0)
    model = PragnosiaForCausalLM(PragnosiaConfig(**(SHAPE if kind == "sparse" else DENSE)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.2)
    model.to(dtype).save_pretrained(folder)
    return folder
