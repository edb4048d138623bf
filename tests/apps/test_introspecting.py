"""`inspect --text`: what a workspace tells, on the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia import Pragnosia
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM

Run = Callable[..., Any]
TEXT = "Once upon a time there was a small brain."


@pytest.fixture(scope="module")
def thinker(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a workspace that is heard."""
    folder = tmp_path_factory.mktemp("thinker") / "model"
    shutil.copytree(model, folder)
    torch.manual_seed(0)
    mind = PragnosiaForCausalLM(
        PragnosiaConfig(
            vocab_size=300,
            hidden_size=32,
            num_hidden_layers=2,
            max_position_embeddings=64,
            attention={"num_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
            feed_forward={"width": 32},
            workspace={"layers": [1], "num_slots": 3, "segment": 4, "num_heads": 2, "head_dim": 8},
        )
    )
    with torch.no_grad():
        for weight in mind.model.layers[1].workspace.parameters():
            weight.add_(torch.randn_like(weight) * 0.5)
    mind.save_pretrained(folder)
    return folder


def test_it_says_what_the_library_says(run: Run, thinker: Path) -> None:
    told = run("inspect", thinker, "--text", TEXT, "--json").values
    state = Pragnosia.from_pretrained(thinker).workspace_state(TEXT).to_dict()
    assert told["awareness"] == pytest.approx(state["awareness"])
    assert told["attention"] == pytest.approx(state["attention"])
    assert told["memory"] == pytest.approx(list(state["memory"]))
    assert told["intention"]["bits"] == pytest.approx(state["intention"]["bits"])
    assert told["intention"]["bits"] > 0, "the workspace is heard"
    assert len(told["layers"][0]["winners"]) == 3


def test_in_words(run: Run, thinker: Path) -> None:
    shown = run("inspect", thinker, "--text", TEXT)
    assert shown.code == 0
    for word in ("awareness", "attention", "memory", "intention", "layer 1"):
        assert word in shown.out
    assert "shorter than a segment" in run("inspect", thinker, "--text", "a").out


def test_what_cannot_be_looked_into(at_once: Run, run: Run, model: Path, thinker: Path, tmp_path: Path) -> None:
    run("inspect", model, "--text", TEXT).refused("no workspace", "model.workspace")
    run("inspect", "nano", "--text", TEXT).refused("no model directory at nano")
    run("inspect", thinker, "--text", TEXT * 20).refused("tokens", "the model holds 64")
    at_once("inspect", tmp_path / "none", "--text", TEXT).refused("no model directory at")
