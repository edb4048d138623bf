"""`upcycle`: what it makes can be loaded, spoken with and told from its parent; what is refused leaves nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def theirs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another family's dense model, as it lies, with a tokenizer."""
    folder = tmp_path_factory.mktemp("theirs") / "qwen3"
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "qwen3",
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, folder / name)
    return folder


def test_another_familys_model_becomes_a_mixture(run: Run, theirs: Path, story: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    values = run("upcycle", theirs, out, "--experts", 4, "--data", story, "--max-bytes", "600", "--json").values
    assert values["largest_logit_change"] < 1e-5
    assert values["bits_per_byte_after"] == pytest.approx(values["bits_per_byte_before"], abs=1e-6)
    feed_forwards = 2 * 3 * 32 * 64
    assert values["total_parameters"] == values["total_parameters_before"] + 3 * feed_forwards + 2 * 4 * 32
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert run("inspect", out, "--json").values["total_parameters"] == values["total_parameters"]
    asked = ("--max-new-tokens", 8, "--temperature", 0, "--json")
    assert run("generate", out, "Once", *asked).values["text"] == run("generate", theirs, "Once", *asked).values["text"]
    table = run("upcycle", theirs, tmp_path / "drawn", "--drop", 0.5, "--split", 2).out
    assert "slices of 4 copies, 50% of their neurons drawn anew" in table
    assert "it has to be trained on" in table


def test_what_cannot_be_upcycled(run: Run, model: Path, theirs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("upcycle", model, out).refused("has 8 experts a layer already")
    run("upcycle", theirs, out, "--split", 3).refused("split is 3, which does not divide the 8 experts")
    run("upcycle", theirs, out, "--data", "nowhere.txt").refused("nowhere.txt")
    run("upcycle", theirs, theirs).refused("already exists")
    run("upcycle", tmp_path / "none", out).refused("no model directory")
    run("pack", theirs, tmp_path / "packed")
    run("upcycle", tmp_path / "packed", out).refused("is packed; upcycle the model it was made from")
    assert not out.exists()
