"""The verbs on a spiking language model: train, generate, chat, eval, inspect, energy, raster, and what is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Run = Callable[..., Any]
CONFIG = Path(__file__).parents[2] / "configs" / "neurogen-nano.yaml"
SMALL = ("model.brain.populations.cortex.size=32", "model.rank=12", "batch.batch_size=4", "batch.sequence_length=32",
         "logging.tensorboard=false", "logging.curves=false", "logging.validate_every=30")  # fmt: skip


@pytest.fixture(scope="module")
def mind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learned a little of a short text."""
    from pragnosia.training.trainer import train

    folder = tmp_path_factory.mktemp("spikes")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    train(CONFIG, data=[str(folder / "text.txt")], out=folder / "run", overrides=[*SMALL, "steps=60"])
    return folder / "run"


def test_it_speaks(run: Run, mind: Path) -> None:
    said = run("generate", mind, "The quick", "--max-new-tokens", "12", "--json").values
    assert said["text"]
    assert said["stopped"] in ("length", "stop")
    assert 0 < said["synaptic_operations_per_token"] < 32 * 32
    assert said["joules_per_token"] < said["dense_joules_per_token"]
    plain = run("generate", mind, "The quick", "--max-new-tokens", "12")
    assert plain.out.rstrip("\n") == said["text"].rstrip("\n")
    assert "synaptic operations" in plain.err
    cut = run("generate", mind, "The quick", "--max-new-tokens", "12", "--stop", said["text"][3:5], "--json").values
    assert cut["text"] == said["text"][:3]
    assert cut["stopped"] == "stop"
    drawn = [run("generate", mind, "T", "--temperature", "1", "--seed", "4", "--json").values["text"] for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_a_one_pass_learner_sits_beside_it(run: Run, mind: Path, tmp_path: Path) -> None:
    text, once = tmp_path / "more.txt", tmp_path / "once"
    text.write_text("A lazy dog jumps over the quick brown fox. " * 30)
    small = [word for name in ("bucket", "history", "match") for word in ("--set", f"model.{name}_bits=12")]
    config = CONFIG.with_name("coincidence.yaml")
    assert run("train", config, "--data", text, "--out", once, *small, "--json").code == 0
    alone = run("eval", mind, "--data", text, "--json").values["bits_per_byte"]
    both = run("eval", mind, "--data", text, "--beside", once, "--json").values["bits_per_byte"]
    assert both < alone / 2
    said = run("generate", mind, "A lazy dog", "--beside", once, "--max-new-tokens", "12", "--json").values
    assert said["text"] == " jumps over "
    run("eval", mind, "--data", text, "--beside", mind).refused("no one-pass learner")


def test_it_is_measured(run: Run, mind: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("The quick brown fox jumps over the lazy dog. " * 30)
    found = run("eval", mind, "--data", tmp_path / "more.txt", "--json").values
    assert found["bytes"] == found["tokens"] == 45 * 30
    assert 0.5 < found["bits_per_byte"] < 4.5
    assert 0 < found["next_token_accuracy"] < 1
    assert run("eval", mind, "--data", tmp_path / "more.txt", "--max-bytes", "100", "--json").values["bytes"] == 100
    told = run("energy", mind, "The quick brown fox", "--json").values
    assert told["neuron_updates_per_token"] == 32
    assert told["synaptic_operations_per_token"] == pytest.approx(32 * told["spikes_per_token"]), (
        "each neuron reaches all"
    )
    assert told["tokens"] == 19


def test_scoring_in_parts_is_scoring_in_one(mind: Path) -> None:
    import torch

    from pragnosia.inference.spikes import SpikingSpeaker
    from pragnosia.measure.neurogen import BEFORE, predict

    speaker = SpikingSpeaker.from_pretrained(mind)
    ids = torch.tensor(speaker.encode("The quick brown fox jumps over the lazy dog. " * 20))
    parts, whole = predict(speaker.model, [(ids, 900)]), predict(speaker.model, [(ids, 900)], rows=1)
    assert parts.tokens == whole.tokens == len(ids) - 1 > 3 * BEFORE
    assert parts.read > whole.read == len(ids) - 1
    with torch.no_grad():
        loss = speaker.model(ids[None], labels=ids[None]).loss
    assert whole.nats == pytest.approx(float(loss) * whole.tokens, rel=1e-4)
    assert parts.nats == pytest.approx(whole.nats, rel=0.02), "256 tokens before are nearly all that counts"


def test_it_is_looked_into(run: Run, mind: Path, tmp_path: Path) -> None:
    values = run("inspect", mind, "--json").values
    assert values["neurons"] == 32
    assert values["total_parameters"] == sum(values["parameters"].values())
    assert run("inspect", CONFIG, "--json").values["total_parameters"] <= 250_000
    picture, arrays = tmp_path / "spikes.png", tmp_path / "spikes.npz"
    drawn = run("raster", mind, "The quick", "--out", picture, "--arrays", arrays, "--json").values
    assert drawn["steps"] == 9
    assert picture.stat().st_size > 10_000
    with np.load(arrays) as kept:
        assert kept["counts"].sum() == drawn["spikes"] > 0


def test_a_talk_goes_on(run: Run, mind: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n\nAnd you?\n/exit\nNo more\n"))
    told = run("chat", mind, "--max-new-tokens", "5", "--temperature", "0", "--json").values
    assert [one["role"] for one in told["messages"]] == ["user", "assistant"] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("generate", "MIND", "x", "--energy", "0.5"), "--energy means nothing"),
        (("chat", "MIND", "--memory", "1GiB"), "--memory means nothing"),
        (("eval", "MIND", "--data", CONFIG, "--learn"), "--learn is for a coincidence learner"),
        (("raster", "MIND"), "say what it is to read"),
        (("energy", CONFIG, "x"), "is no spiking model"),
        (("train", CONFIG, "--rule", "local"), "not defined for a spiking model; it learns by surrogate"),
        (("train", CONFIG, "--rule", "surogate"), "surrogate"),
    ],
)
def test_what_means_nothing_is_one_line(run: Run, mind: Path, words: tuple[Any, ...], said: str) -> None:
    answer = run(*(mind if word == "MIND" else word for word in words))
    assert answer.code == 2
    assert said in answer.err
    assert answer.err.count("\n") == 1


def test_broken_weights_are_one_line(run: Run, mind: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(mind, tmp_path / "broken", ignore=shutil.ignore_patterns("checkpoints", "data"))
    held = (tmp_path / "broken" / "model.safetensors").read_bytes()
    (tmp_path / "broken" / "model.safetensors").write_bytes(held[:-100])
    answer = run("generate", tmp_path / "broken", "x")
    assert answer.code == 2
    assert "truncated or corrupt" in answer.err


def test_it_is_packed(run: Run, mind: Path, tmp_path: Path) -> None:
    small, text = tmp_path / "small", tmp_path / "text.txt"
    text.write_text("The lazy dog jumps over the quick brown fox. " * 20)
    run("pack", mind, small, "--no-quality").refused("packed to int8 alone", "say --format int8")
    told = run("pack", mind, small, "--format", "int8", "--data", text, "--json").values
    assert told["num_bytes"] < 0.4 * told["source_bytes"]
    assert abs(told["packed_bits_per_byte"] - told["source_bits_per_byte"]) < 0.05
    assert run("inspect", small, "--json").values["weights"] == "int8"
    scored, before = (run("eval", one, "--data", text, "--json").values for one in (small, mind))
    assert scored["bits_per_byte"] == pytest.approx(told["packed_bits_per_byte"], abs=1e-6)
    assert scored["joules_per_token"] < before["joules_per_token"]
    assert run("generate", small, "The quick", "--max-new-tokens", "5").out.strip()
    run("pack", small, tmp_path / "smaller", "--format", "int8", "--no-quality").refused("int8 already")
    assert not (tmp_path / "smaller").exists()


def test_it_leaves_as_a_graph(run: Run, mind: Path, tmp_path: Path) -> None:
    pytest.importorskip("nir", reason="NIR files need the extra nir")
    out = tmp_path / "mind.nir"
    run("export", mind, out).refused("a spiking language model", "add --format nir")
    run("export", mind, out, "--format", "nir", "--drive", "noise").refused("constant drive")
    assert not out.exists()
    assert run("export", mind, out, "--format", "nir", "--json").values["neurons"] > 0
    run("import", out, tmp_path / "back").refused("is a spiking language model")
