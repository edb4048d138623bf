"""A text, a configuration and a tokenizer small enough that a run takes a second."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pragnosia.data import train_tokenizer

Configure = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def corner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds text.txt and tokenizer/."""
    folder = tmp_path_factory.mktemp("corner")
    lines = [f"The {a} {b} of {c} sees {d}.\n" for a in ("old", "new", "red") for b in ("cat", "king", "tree", "word")
             for c in ("Rome", "snow", "song") for d in ("me", "stars", "rain", "nobody")]  # fmt: skip
    (folder / "text.txt").write_text("".join(lines) * 8)
    train_tokenizer([folder / "text.txt"], 300, folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def configure(corner: Path) -> Configure:
    """The small configuration, with sections changed."""

    def changed(**sections: Any) -> dict[str, Any]:
        config = copy.deepcopy(_SMALL)
        config["data"]["sources"] = [str(corner / "text.txt")]
        config["data"]["cache"] = str(corner / "cache")
        config["tokenizer"] = {"path": str(corner / "tokenizer")}
        for key, value in sections.items():
            config[key] = config[key] | value if isinstance(value, dict) and key in config else value
        return config

    return changed


_SMALL: dict[str, Any] = {
    "model": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "max_position_embeddings": 32,
        "attention": {"num_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
        "experts": {
            "num_units": 4,
            "unit_width": 8,
            "num_shared": 1,
            "thalamus": {"kind": "sigmoid", "num_awake": 2, "balance_rate": 1e-3},
        },
    },
    "data": {"validation_fraction": 0.1},
    "batch": {"batch_size": 4, "sequence_length": 16},
    "steps": 12,
    "optimiser": {"learning_rate": 0.01},
    "schedule": {"warmup_steps": 2},
    "checkpoint": {"every": 5, "keep": 2},
    "logging": {"every": 1, "validate_every": 6, "tensorboard": False, "curves": False},
    "device": "cpu",
}
