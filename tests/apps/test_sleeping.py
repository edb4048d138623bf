"""`sleep`: what was taught is known without the store; what was given stays as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia.apps.cli import main
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.store.episodes import EpisodicStore
from pragnosia.training import sleep as sleeping

Run = Callable[..., Any]
LESSON, OTHER = "The capital of Zorvia is Plem.", "Brun's mayor is Tal."


@pytest.fixture(scope="module")
def remembers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with long-term memory, taught two lessons; the tokenizer is the other tiny model's."""
    folder = tmp_path_factory.mktemp("remembers") / "model"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "episodes"))
    theirs = json.loads((model / "config.json").read_text("utf-8"))
    torch.manual_seed(0)
    config = PragnosiaConfig(
        vocab_size=theirs["vocab_size"],
        hidden_size=32,
        num_hidden_layers=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        attention={"num_heads": 2, "num_key_value_heads": 1},
        feed_forward={"width": 16, "activation": "relu2"},
        feed_forwards=["dense", "memory"],
        hippocampus={"num_rows": 4096, "num_heads": 2, "num_awake": 8, "key_width": 16},
        tokenizer_digest=theirs["tokenizer_digest"],
        **{name: theirs[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    PragnosiaForCausalLM(config).save_pretrained(folder)
    for text in (LESSON, OTHER, OTHER):
        assert main(["teach", str(folder), text, "--json"]) == 0
    return folder


def asleep(source: Path, out: Path, text: Path, *more: object) -> tuple[object, ...]:
    pace = ("--rate", 0.05, "--bound", 5, "--slots", 128, "--recall", 1)
    return ("sleep", source, "--out", out, "--data", text, *pace, "--json", *more)


def test_known_without_the_store(run: Run, remembers: Path, story: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in remembers.rglob("*") if path.is_file() and path.parent == remembers}
    out = tmp_path / "rested"
    values = run(*asleep(remembers, out, story)).values
    assert (values["lessons"], values["replayed"], values["known_before"], values["known"]) == (2, 2, 0, 2)
    assert values["ended"] == "recall"
    assert values["old_loss"] <= values["old_loss_before"] + 5
    assert 0 < values["slots_written"] <= 256
    said = run("generate", out, "The capital of Zorvia is", "--max-new-tokens", 5, "--no-memory", "--json").values
    assert said["text"].startswith(" Plem.")
    assert all(path.read_bytes() == content for path, content in before.items())
    theirs = run("memory", "stats", remembers, "--json").values
    assert (theirs["episodes"], theirs["consolidated"]) == (2, 0)
    stats = run("memory", "stats", out, "--json").values
    assert (stats["episodes"], stats["lessons_taught"], stats["consolidated"]) == (2, 3, 2)
    assert stats["mean_surprise"] == pytest.approx(theirs["mean_surprise"])  # as when they were taught
    found = run("recall", out, "What is the capital of Zorvia?", "--json").values["recalled"]
    assert found[0]["text"] == LESSON
    assert "consolidated" in run("memory", "stats", out).out
    run(*asleep(remembers, out, story)).refused(str(out), "not an empty directory")
    # another night: what was written stays, and there is nothing left to learn
    again = run(*asleep(out, tmp_path / "again", story, "--forget-store")).values
    assert (again["known_before"], again["known"], again["slots_written"], again["rounds"]) == (2, 2, 0, 0)
    assert not (tmp_path / "again" / "episodes").exists()


def test_whole_or_not_at_all(
    run: Run, remembers: Path, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rested"
    monkeypatch.setattr(sleeping.Interruption, "__enter__", lambda self: setattr(self, "asked", True) or self)
    stopped = run(*asleep(remembers, out, story))
    assert stopped.code == 130
    assert "nothing was written" in stopped.err
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EpisodicStore, "write", full)
    run(*asleep(remembers, out, story)).refused("cannot write", "No space left")
    monkeypatch.undo()
    nothing = run(*asleep(remembers, out, story), "--bound", 0, "--rounds", 1)
    assert nothing.code == 1
    assert "no lesson could be learned" in nothing.err
    assert list(tmp_path.iterdir()) == []


def test_refusals(run: Run, model: Path, remembers: Path, story: Path, tmp_path: Path) -> None:
    out = tmp_path / "rested"
    run("sleep", model, "--out", out, "--data", story).refused("no long-term memory", "memory")
    run("sleep", remembers, "--out", out).refused("--data TEXT")
    run("sleep", remembers, "--out", out, "--data", story, "--store", tmp_path / "none").refused("no store")
    run("sleep", remembers, "--out", out, "--data", story, "--recall", 0).refused("recall is 0")
    run("sleep", remembers, "--out", out, "--data", tmp_path / "none.txt").refused("none.txt")
    short = tmp_path / "short.txt"
    short.write_text("Too short.", "utf-8")
    run("sleep", remembers, "--out", out, "--data", short).refused("too few", "--data")
    assert not out.exists()


def test_what_a_run_learned_from_is_known(tmp_path: Path, story: Path) -> None:
    (tmp_path / "train.yaml").write_text(f"data: {{sources: ['{story}']}}\n", "utf-8")
    assert story.name in sleeping.learned_from(tmp_path).name
