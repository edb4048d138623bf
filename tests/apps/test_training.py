"""`train`, `compare`, `tokenizer train`: what is refused, when, and what stays as it was."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pragnosia.training.progress import Bar

Run = Callable[..., Any]
TINY = (
    "model: {preset: nano, hidden_size: 32, num_hidden_layers: 1, max_position_embeddings: 64}\n"
    "tokenizer: {vocab_size: 280}\nbatch: {batch_size: 2, sequence_length: 32}\n"
    "logging: {tensorboard: false, curves: false}\n"
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of very few tokens."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY + "tokens: 192\n", "utf-8")
    return path


@pytest.mark.parametrize("verb", ["train", "compare"])
def test_what_needs_no_torch_is_told_at_once(at_once: Run, config: Path, verb: str, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    at_once(verb, tmp_path / "none.yaml", *out).refused("none.yaml")
    at_once(verb, config, "--set", "steps", *out).refused("section.key=value")
    at_once(verb, config, "--data", tmp_path / "none.txt", *out).refused("none.txt")
    at_once(verb, config, "--data", "default@0.5", "default", *out).refused("no weight")
    assert not (tmp_path / "out").exists()


def test_steps_on_the_command_line_replace_tokens(run: Run, config: Path, story: Path, tmp_path: Path) -> None:
    outcome = run("train", config, "--data", story, "--out", tmp_path / "out", "--set", "steps=2", "--json")
    assert outcome.values["steps"] == 2


def test_resuming_nothing_is_told(run: Run, config: Path, story: Path, tmp_path: Path) -> None:
    outcome = run("train", config, "--data", story, "--out", tmp_path / "out", "--resume", "--json")
    assert outcome.code == 0
    assert outcome.err.startswith("nothing to resume")


def test_a_watched_run_grows_up_and_says_so_where_nothing_can_be_drawn(
    run: Run, config: Path, story: Path, tmp_path: Path
) -> None:
    stages = "stages=[{name: young, layers: 1, steps: 1}, {name: adult}]"
    deep = ("--set", "model.num_hidden_layers=2", "--set", "logging.curves=true")
    out = tmp_path / "out"
    outcome = run("train", config, "--data", story, "--out", out, "--watch", *deep, "--set", stages, "--json")
    assert outcome.code == 0
    assert "step 1: stage: adult: 1 -> 2 layers (young took 1 step)" in outcome.err
    assert "young took 1 step" in (out / "report.html").read_text()


def test_a_slip_in_the_preset_is_told_first(run: Run, story: Path, tmp_path: Path) -> None:
    (tmp_path / "slip.yaml").write_text("model: {preset: nanno}\n")
    run("train", tmp_path / "slip.yaml", "--data", story, "--out", tmp_path / "out").refused("nanno", "'nano'")
    assert not (tmp_path / "out").exists()


def test_no_text_is_told_before_a_tokenizer_is_trained(run: Run, config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    run("train", config, "--data", tmp_path / "empty.txt", "--out", tmp_path / "out").refused("empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"\x00\xff" * 99)
    run("train", config, "--data", tmp_path / "binary.txt", "--out", tmp_path / "out").refused("binary.txt")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_is_replaced_only_when_told(run: Run, at_once: Run, story: Path, tmp_path: Path) -> None:
    command = ("tokenizer", "train", story, "--out", tmp_path / "tok", "--vocab-size")
    assert run(*command, 300, "--json").code == 0
    before = (tmp_path / "tok" / "tokenizer.json").read_bytes()
    at_once(*command, 280).refused("already holds a tokenizer", "--force")
    assert (tmp_path / "tok" / "tokenizer.json").read_bytes() == before
    assert run(*command, 280, "--force", "--json").values["vocab_size"] == 280
    at_once("tokenizer", "train", "none.txt", "--out", tmp_path / "b", "--vocab-size", 280).refused("none.txt")


def test_a_failed_start_leaves_nothing(run: Run, config: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a")
    command = ("train", config, "--data", tmp_path / "one.txt", "--out", tmp_path / "out")
    failed = run(*command)
    assert failed.code == 2
    assert "one.txt has 2 tokens to train on, a window needs 33" in failed.err.splitlines()[-1]
    assert "held out" not in failed.err, "nothing is said of text that cannot be trained on"
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    assert run(*command).code == 2
    assert list((tmp_path / "out").iterdir()) == [], "a folder that was there stays"


def test_an_interrupted_run_says_where_its_model_is(
    run: Run, at_once: Run, config: Path, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(bar: Bar, step: int, record: object) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Bar, "advance", interrupt)
    out = tmp_path / "out"
    stopped = run("train", config, "--data", story, "--out", out)
    assert stopped.code == 130
    assert "stopped at step 2 as asked; go on with --resume" in stopped.err
    saved = out / "checkpoints" / "step-00000002"
    at_once("generate", out, "hi").refused("holds no config.json", str(saved), "--resume")
    assert run("generate", saved, "hi", "--max-new-tokens", 2, "--json").code == 0
    shutil.rmtree(out / "checkpoints")
    at_once("generate", out, "hi").refused("stopped before its first checkpoint", "--resume")
