"""The verbs on a one-pass learner: train, eval, generate, inspect, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
CONFIG = Path(__file__).parents[2] / "configs" / "coincidence.yaml"
SMALL = ("--set", "model.bucket_bits=13", "--set", "model.history_bits=13", "--set", "model.match_bits=10")


@pytest.fixture
def once(run: Run, story: Path, tmp_path: Path) -> Path:
    """A model that read the story."""
    out = tmp_path / "once"
    told = run("train", CONFIG, "--data", story, "--out", out, *SMALL, "--json")
    assert told.code == 0, told.err
    assert told.values["bits_per_byte"] < 1
    assert told.values["bits_per_byte_learned"] < 2
    return out


def test_it_learns_once_and_goes_on_learning(run: Run, once: Path, tmp_path: Path) -> None:
    news = tmp_path / "news.txt"
    news.write_text("A quick red fox jumps over the lazy dogs of the town. " * 8)
    before = (once / "model.safetensors").read_bytes()
    still = run("eval", once, "--data", news, "--json").values
    learning = run("eval", once, "--data", news, "--learn", "--json").values
    assert learning["bits_per_byte"] < still["bits_per_byte"]
    assert learning["bytes"] == still["bytes"] == news.stat().st_size
    assert (once / "model.safetensors").read_bytes() == before
    assert run("eval", once, "--data", news, "--max-bytes", "100", "--json").values["bytes"] == 100


def test_it_speaks_and_is_looked_into(run: Run, once: Path) -> None:
    said = run("generate", once, "Once upon", "--max-new-tokens", "12", "--json").values
    assert said["text"] == " a time ther"
    assert said["stopped"] == "length"
    assert run("generate", once, "Once upon", "--stop", "time", "--json").values["text"] == " a "
    assert run("inspect", once, "--json").values["buckets"] == 1 << 13


def test_what_means_nothing_here_is_refused(run: Run, once: Path, story: Path, model: Path, tmp_path: Path) -> None:
    run("generate", once, "x", "--speculate").refused("--speculate", "coincidence")
    run("chat", once).refused("pragnosia-coincidence")
    run("eval", model, "--data", story, "--learn").refused("--learn", "coincidence")
    run("train", CONFIG, "--data", story, "--out", once).refused("not empty")
    out = ("--data", story, "--out", tmp_path / "new")
    run("train", CONFIG, *out, "--set", "model.bucket_bitz=3").refused("bucket_bitz")
    run("train", CONFIG, *out, "--set", "optimiser.name=adamw").refused("optimiser")
    run("train", CONFIG, *out, "--resume").refused("--resume")
    run("train", CONFIG, *out, "--watch").refused("--watch", "coincidence")
    assert not (tmp_path / "new").exists()
