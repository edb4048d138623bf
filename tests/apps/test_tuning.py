"""`merge`: what it says, what it leaves, and what it refuses before anything heavy is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pragnosia import kernels
from pragnosia.tuning.configuration import LoraConfig
from pragnosia.tuning.peft_format import write_adapter

Run = Callable[..., Any]


@pytest.fixture
def adapter(model: Path, tmp_path: Path) -> Path:
    """An adapter of the tiny model: one matrix of the first layer, and a bank."""
    shapes = {
        "model.layers.0.mixer.q_proj.lora_a": (2, 32),
        "model.layers.0.mixer.q_proj.lora_b": (32, 2),
        "model.layers.1.feed_forward.bank.down_a": (8, 2, 16),
        "model.layers.1.feed_forward.bank.down_b": (8, 32, 2),
    }
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    write_adapter(tmp_path / "adapter", tensors, LoraConfig(rank=2, alpha=4.0), model)
    return tmp_path / "adapter"


def test_merge_says_what_it_did(run: Run, model: Path, adapter: Path, tmp_path: Path) -> None:
    said = run("merge", model, adapter, tmp_path / "words")
    assert said.code == 0, said.err
    for words in (f"{adapter} into {model}", "rank 2, alpha 4", "2 tensors of attention, units"):
        assert words in said.out
    values = run("merge", model, adapter, tmp_path / "out", "--json").values
    assert (values["num_adapted"], values["targets"], values["rank"]) == (2, ["attention", "units"], 2)
    assert values["num_adapter_parameters"] == 2 * 32 + 32 * 2 + 8 * 2 * 16 + 8 * 32 * 2
    assert set(values["files"]) == {path.name for path in (tmp_path / "out").iterdir()}
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.layers.0.mixer.q_proj.weight", "model.layers.1.feed_forward.bank.down"}
    assert run("generate", tmp_path / "out", "Once", "--max-new-tokens", 3, "--json").code == 0


def test_a_calibration_is_the_models_alone(
    run: Run, calibrated: Path, adapter: Path, chat: Path, tmp_path: Path
) -> None:
    """Other weights: other costs and other words. Who merges or tunes by blocks is told to measure again."""
    merged, tuned = tmp_path / "merged", tmp_path / "tuned"
    blocks = ("--method", "blocks", "--sequence-length", 32, "--steps", 1, "--block-steps", 1, "--out", tuned)
    for out, command in ((merged, ("merge", calibrated, adapter, merged)), (tuned, ("tune", calibrated, *blocks))):
        done = run(*command, *(("--data", chat) if out == tuned else ()))
        assert f"exits.json and energy.json of {calibrated} are its alone; run: pragnosia calibrate {out}" in done.out
        assert not list(out.glob("e*.json"))


def test_merge_refuses_at_once(at_once: Run, model: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    at_once("merge", tmp_path / "none", adapter, out).refused("no model directory at")
    at_once("merge", model, tmp_path / "none", out).refused("no adapter at")
    at_once("merge", model, model, out).refused("holds no adapter_config.json")
    at_once("merge", model, adapter, model).refused("already exists")
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    at_once("merge", model, adapter, out).refused("use_dora is True", "merge_and_unload")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    at_once("merge", model, adapter, out).refused("pickled adapter (adapter_model.bin)")
    foreign = Path(shutil.copytree(model, tmp_path / "foreign"))
    (foreign / "config.json").write_text('{"model_type": "gemma2"}')
    at_once("merge", foreign, adapter, out).refused("'gemma2' is not supported")
    assert not out.exists()


def test_merge_refuses_anothers_adapter(run: Run, trained: Path, adapter: Path, tmp_path: Path) -> None:
    run("merge", trained, adapter, tmp_path / "out").refused("this adapter was made for another model: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_a_packed_model_is_not_merged_into(run: Run, at_once: Run, model: Path, adapter: Path, tmp_path: Path) -> None:
    assert run("pack", model, tmp_path / "packed", "--json").code == 0
    at_once("merge", tmp_path / "packed", adapter, tmp_path / "out").refused("merge into the model it was packed from")


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"prompt": "Who?", "completion": f"The cat {n}."}) + "\n" for n in range(8)))
    return path


def test_tune_by_blocks_says_what_it_did(run: Run, model: Path, chat: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    given = ("--data", chat, "--method", "blocks", "--sequence-length", 32, "--steps", 5, "--block-steps", 2)
    said = run("tune", model, *given, "--block-units", 4, "--out", out)
    assert said.code == 0, said.err
    for words in (f"{out}, ", " parameters\ntuned", "in 3 turns, up to"):
        assert words in said.out
    assert "embeddings and output head stay" in said.err
    values = run("tune", model, *given, "--out", tmp_path / "again", "--json").values
    assert values["turns"] == 3
    assert values["parameters"] == sum(values["blocks"].values())
    assert run("generate", out, "Once", "--max-new-tokens", 3, "--json").code == 0


def test_where_nothing_is_named_a_run_lies_in_runs(
    run: Run, model: Path, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = run("tune", model, "--data", chat, "--sequence-length", 32, "--steps", 1)
    assert said.code == 0, said.err
    assert (tmp_path / "runs" / f"{model.name}-tuned" / "adapter_config.json").is_file()


def test_tune_refuses_another_methods_options_at_once(at_once: Run, model: Path, chat: Path, tmp_path: Path) -> None:
    given = ("tune", model, "--data", chat, "--out", tmp_path / "out")
    at_once(*given, "--method", "block").refused("Did you mean 'blocks'")
    at_once(*given, "--block-steps", 3).refused("only --method blocks takes --block-steps; leave it out")
    at_once(*given, "--method", "blocks", "--rank", 8, "--targets", "units").refused(
        "only --method lora takes --rank, --targets"
    )
    config = json.loads((model / "config.json").read_text())
    quantised = Path(shutil.copytree(model, tmp_path / "quantised"))
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "x"}}))
    at_once("tune", quantised, "--data", chat, "--out", tmp_path / "out", "--method", "blocks").refused(
        "rounded weights cannot learn"
    )
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_is_refused_at_once(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    (tmp_path / "chat.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    outcome = run("tune", file, "--data", tmp_path / "chat.jsonl", "--out", tmp_path / "out")
    assert outcome.code != 0
    assert (
        f"{file} is a GGUF file, and to tune takes a directory; make one (pragnosia import {file} OUT)" in outcome.err
    )
    assert not (tmp_path / "out").exists()
