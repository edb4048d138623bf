"""`sparsify`: inputs that sleep, weights that go, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pragnosia import kernels
from pragnosia.apps.sparsifying import _counted
from pragnosia.inference.loading import load_model
from pragnosia.inference.sparsity import sites_of

Run = Callable[..., Any]
needs_library = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")


@pytest.fixture(scope="module")
def theirs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another family's dense model, as it lies, with a tokenizer."""
    folder = tmp_path_factory.mktemp("theirs") / "llama"
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "llama",
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, folder / name)
    return folder


def test_inputs_sleep(run: Run, theirs: Path, story: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    values = run("sparsify", theirs, out, "--level", 0.5, "--data", story, "--tokens", 300, "--json").values
    assert values["asleep"] == pytest.approx(0.5, abs=0.05)
    assert values["perplexity"] != values["perplexity_before"]
    assert values["tokens"] == values["held_out_tokens"] == 300
    written = json.loads((out / "sparsity.json").read_text())
    assert written["level"] == 0.5
    assert written["sites"].keys() == sites_of(load_model(out)).keys()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert run("generate", out, "Once", "--max-new-tokens", 3, "--json").values["tokens"] == 3
    assert run("eval", out, "--data", story, "--max-bytes", 500, "--json").values["perplexity"] > 0
    seen = run("inspect", out, "--json").values
    assert seen["bytes_per_token"] == values["bytes_per_token"] < values["bytes_per_token_before"]
    assert "weights of inputs that sleep" in run("inspect", out).out
    for command in (("pack", out, tmp_path / "packed"), ("sparsify", out, tmp_path / "x", "--pattern", "2:4")):
        run(*command).refused("is sparsified and runs whole in memory")
    run("generate", out, "Once", "--memory", "4GiB").refused("is sparsified")
    table = run("sparsify", theirs, tmp_path / "deep", "--level", 0.9, "--data", story).out
    assert "asleep" in table
    assert "perplexity" in table


def test_attention_and_shared_units_of_a_sparse_model_sleep(run: Run, model: Path, story: Path, tmp_path: Path) -> None:
    values = run("sparsify", model, tmp_path / "out", "--level", 0.4, "--data", story, "--json").values
    assert values["asleep"] == pytest.approx(0.4, abs=0.08)
    assert run("generate", tmp_path / "out", "Once", "--max-new-tokens", 3, "--json").values["tokens"] == 3


def test_what_the_share_asleep_is_of(model: Path, theirs: Path) -> None:
    assert _counted(load_model(theirs)) == "the layers' weights"
    assert _counted(load_model(model)) == "the layers' weights beside the units (of which 2 of 8 wake)"


@needs_library
def test_weights_go(run: Run, theirs: Path, model: Path, story: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    values = run("sparsify", theirs, out, "--pattern", "2:4", "--data", story, "--tokens", 300, "--json").values
    assert values["perplexity"] != values["perplexity_before"]
    assert run("generate", out, "Once", "--max-new-tokens", 3, "--json").values["tokens"] == 3
    assert run("inspect", out, "--json").values["precision"] == "bf16-2:4"
    eight = run("sparsify", theirs, tmp_path / "eight", "--pattern", "2:4", "--format", "int8", "--json").values
    assert (values["format"], eight["format"]) == ("bf16-2:4", "int8-2:4")
    assert "perplexity" not in eight
    small = run("sparsify", model, tmp_path / "small", "--pattern", "2:4").out
    assert f"quality          not measured; give --data TEXT, or: pragnosia eval {model} and" in small
    assert run("generate", tmp_path / "eight", "On", "--max-new-tokens", 2, "--memory", "4GiB", "--json").code == 0


@needs_library
def test_weights_go_and_the_rest_learns(run: Run, model: Path, story: Path, tmp_path: Path) -> None:
    command = (
        "sparsify",
        model,
        tmp_path / "out",
        "--pattern",
        "2:4",
        "--recover",
        2,
        "--data",
        story,
        "--learning-rate",
        0.001,
        "--json",
    )
    values = run(*command).values
    assert values["recover"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert run("eval", tmp_path / "out", "--data", story, "--json").values["perplexity"] > 0


def test_what_cannot_be(run: Run, at_once: Run, model: Path, story: Path, tmp_path: Path) -> None:
    out, few = tmp_path / "out", tmp_path / "few.txt"
    few.write_text("Too short.")
    told = {
        ("--level", "1.0"): "must lie in [0, 1)",
        ("--level", "-0.5"): "must lie in [0, 1)",
        ("--pattern", "1:4"): "unknown --pattern '1:4'",
        (): "one of them",
        ("--level", "0.5", "--pattern", "2:4"): "one of them",
        ("--level", "0.5", "--recover", "3"): "--recover and --format are for --pattern",
        ("--pattern", "2:4", "--format", "int5"): "unknown --format",
        ("--pattern", "2:4", "--learning-rate", "0.01"): "--learning-rate is that of --recover",
        ("--pattern", "2:4", "--recover", "2", "--learning-rate", "0"): "greater than 0",
    }
    at_once("sparsify", model, out, "--level", "1.5", "--data", story).refused("must lie in [0, 1)")
    for options, words in told.items():
        run("sparsify", model, out, *options, "--data", story).refused(words)
    run("sparsify", model, out, "--level", 0.5).refused("--data")
    run("sparsify", model, out, "--pattern", "2:4", "--recover", 3).refused("--recover needs a text")
    run("sparsify", model, out, "--level", 0.5, "--data", few).refused("few.txt", "too few to calibrate")
    run("sparsify", model, story.parent, "--level", 0.5, "--data", story).refused("not an empty directory")
    run("sparsify", tmp_path / "none", out, "--level", 0.5, "--data", story).refused("no model directory")
    assert not out.exists()


def test_a_width_that_is_no_multiple_of_four(run: Run, theirs: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(
        "llama", vocab_size=300, hidden_size=32, intermediate_size=66, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "odd")
    run("sparsify", tmp_path / "odd", tmp_path / "out", "--pattern", "2:4").refused("has 66", "no multiple of 4")
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]
