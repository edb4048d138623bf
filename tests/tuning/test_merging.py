"""A merged model is the adapted one: in our hands, in transformers', in every family and layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import pragnosia  # noqa: F401  (its models join transformers' Auto classes)
from pragnosia.checkpoints import export_model, import_model, source
from pragnosia.checkpoints.blueprint import described_config
from pragnosia.errors import CheckpointError
from pragnosia.inference.loading import load_model
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.tuning.configuration import LoraConfig
from pragnosia.tuning.merging import merge_adapter
from pragnosia.tuning.peft_format import write_adapter

CONFIG = LoraConfig(rank=3, alpha=5.0, targets=("attention", "units", "dense"))
FAMILIES = ["llama", "qwen3", "mixtral", "qwen3_moe", "olmoe", "gpt_oss"]


@pytest.fixture
def adapt(tools: Any, tmp_path: Path) -> Callable[[Path], tuple[Path, torch.Tensor]]:
    """An adapter of a model on disk, and the logits of both together."""

    def make(folder: Path) -> tuple[Path, torch.Tensor]:
        tensors = tools.adapters(folder, CONFIG)
        write_adapter(tmp_path / "adapter", tensors, CONFIG, folder)
        return tmp_path / "adapter", tools.adapted_logits(folder, tensors, CONFIG)

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_model_stays_its_own(
    family: str,
    family_folder: Callable[..., Path],
    adapt: Any,
    tools: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Pieces smaller than a unit, a few rows each, so that their edges and the changes' do not meet.
    monkeypatch.setattr(source, "PIECE_BYTES", 700)
    folder = family_folder(family)
    adapter, expected = adapt(folder)
    report = merge_adapter(folder, adapter, tmp_path / "out", shard_bytes=20_000)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(tools.their_logits(theirs), expected, atol=1e-5, rtol=1e-5)
    ours = tools.their_logits(load_model(tmp_path / "out"))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert (tmp_path / "out" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    before, after = load_file(folder / "model.safetensors"), {}
    for shard in (tmp_path / "out").glob("*.safetensors"):
        after |= load_file(shard)
    assert {name: tensor.shape for name, tensor in before.items()} == {n: tensor.shape for n, tensor in after.items()}
    changed = sum(not torch.equal(before[name], after[name]) for name in before)
    assert changed >= report.num_adapted
    assert report.num_parameters == sum(tensor.numel() for tensor in before.values())


@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_units_stacked_in_the_files(
    family: str, family_folder: Callable[..., Path], adapt: Any, tools: Any, tmp_path: Path
) -> None:
    folder, stacked = family_folder(family), tmp_path / "stacked"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.config.save_pretrained(stacked)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, stacked / "model.safetensors")
    adapter, expected = adapt(stacked)
    merge_adapter(stacked, adapter, tmp_path / "out")
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(tmp_path / "out" / "model.safetensors")
    merged = tools.their_logits(load_model(tmp_path / "out"))
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-5)


def test_a_model_of_ours(own_folder: Path, adapt: Any, tools: Any, tmp_path: Path) -> None:
    adapter, expected = adapt(own_folder)
    report = merge_adapter(own_folder, adapter, tmp_path / "out")
    assert report.num_adapted == 2 * 4 + 2 + 2 + 2
    for merged in (load_model(tmp_path / "out"), transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")):
        torch.testing.assert_close(tools.their_logits(merged), expected, atol=1e-5, rtol=1e-5)


def test_an_imported_model_still_knows_where_it_came_from(
    family_folder: Callable[..., Path], adapt: Any, tools: Any, tmp_path: Path
) -> None:
    import_model(family_folder("qwen3_moe"), tmp_path / "ours")
    adapter, expected = adapt(tmp_path / "ours")
    merge_adapter(tmp_path / "ours", adapter, tmp_path / "out")
    export_model(tmp_path / "out", tmp_path / "back")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    torch.testing.assert_close(tools.their_logits(theirs), expected, atol=1e-5, rtol=1e-5)
    assert theirs.config.model_type == "qwen3_moe"


def test_the_sum_is_rounded_once(own_folder: Path, tools: Any, tmp_path: Path) -> None:
    model = PragnosiaForCausalLM.from_pretrained(own_folder).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    tensors = tools.adapters(own_folder, CONFIG)
    write_adapter(tmp_path / "adapter", tensors, CONFIG, tmp_path / "half")
    merge_adapter(tmp_path / "half", tmp_path / "adapter", tmp_path / "out")
    merged, before = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "half"))
    name = "model.layers.0.feed_forward.bank.down"
    change = CONFIG.scale * tensors[f"{name}_b"].double() @ tensors[f"{name}_a"].double()
    exact = (before[name].double() + change).float().bfloat16()
    assert merged[name].dtype == torch.bfloat16
    assert (merged[name] != exact).float().mean() < 0.001, "all but ties that fp32 decides otherwise"
    assert torch.equal(merged["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert {name: tensor.dtype for name, tensor in merged.items()} == {n: tensor.dtype for n, tensor in before.items()}


def test_what_travels(own_folder: Path, adapt: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    PragnosiaForCausalLM.from_pretrained(own_folder).save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    (source / "events.log").write_text("of the run")
    adapter, _ = adapt(source)
    report = merge_adapter(source, adapter, tmp_path / "out")
    assert report.files == ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
    assert described_config(tmp_path / "out").to_dict() == described_config(source).to_dict()


def test_refusals_leave_nothing(family_folder: Callable[..., Path], adapt: Any, tmp_path: Path) -> None:
    folder = family_folder("llama")
    adapter, _ = adapt(folder)
    other = family_folder("llama", hidden_size=48)
    with pytest.raises(CheckpointError, match="made for another model"):
        merge_adapter(other, adapter, tmp_path / "out")
    quantised = tmp_path / "quantised"
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(quantised)
    values = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps(values | {"quantization_config": {"quant_method": "mxfp4"}}))
    with pytest.raises(CheckpointError, match=r"quantised \(mxfp4\).*pragnosia import"):
        merge_adapter(quantised, adapter, tmp_path / "out")
    (quantised / "config.json").write_text(json.dumps(values | {"model_type": "gemma2"}))
    with pytest.raises(CheckpointError, match="'gemma2' is not supported"):
        merge_adapter(quantised, adapter, tmp_path / "out")
    (quantised / "packed.json").write_text("{}")
    (quantised / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="merge into the model it was packed from"):
        merge_adapter(quantised, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="not an empty directory"):
        merge_adapter(folder, adapter, quantised)
