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


def test_it_sits_beside_another_model(run: Run, once: Path, story: Path, model: Path, tmp_path: Path) -> None:
    """One of byte pairs that knows nothing: what it makes of the story becomes much likelier."""
    before = {path: path.read_bytes() for path in once.rglob("*") if path.is_file()}
    alone = run("eval", model, "--data", story, "--json").values
    both = run("eval", model, "--data", story, "--beside", once, "--json").values
    assert both["bits_per_byte"] < alone["bits_per_byte"] - 0.05
    assert both["tokens"] == alone["tokens"]
    news = tmp_path / "news.txt"
    news.write_text("A quick red fox jumps over the lazy dogs of the town. " * 20)
    still, learning = (
        run("eval", model, "--data", news, "--beside", once, "--json", *more).values["bits_per_byte"]
        for more in ((), ("--learn",))
    )
    assert learning < still
    said = [
        run("generate", model, "Once upon a", "--max-new-tokens", "8", "--json", *more).values["text"]
        for more in ((), ("--beside", once))
    ]
    assert said[0] != said[1]
    assert {path: path.read_bytes() for path in once.rglob("*") if path.is_file()} == before
    run("generate", model, "Once", "--beside", model).refused("no one-pass learner", "coincidence.yaml")
    run("eval", model, "--data", story, "--beside", tmp_path / "nowhere").refused("no one-pass learner")
    run("eval", model, "--data", story, "--beside", once, "--energy", "1,0.5").refused("--beside", "one --energy")
    run("generate", once, "Once", "--beside", once).refused("--beside")
    run("eval", once, "--data", story, "--beside", once).refused("--beside")
    run("generate", model, "Once", "--beside", once, "--cache").refused("exclude each other")
    run("generate", model, "Once", "--beside", once, "--exact").refused("exact")
