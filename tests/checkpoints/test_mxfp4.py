"""Packed gpt-oss units, against transformers' own unpacking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from pragnosia.checkpoints import export_model, import_model
from pragnosia.checkpoints.mxfp4 import dequantise
from pragnosia.errors import CheckpointError


def packed(*rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, (*rows, 16), generator=generator, dtype=torch.uint8)
    return blocks, torch.randint(118, 130, rows, generator=generator, dtype=torch.uint8)


def test_every_code_is_what_transformers_makes_of_it() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 2, 8, 16)
    scales = torch.randint(1, 250, (1, 2, 8), dtype=torch.uint8)
    expected = convert_moe_packed_tensors(blocks, scales).transpose(1, 2)
    got = dequantise(blocks, scales)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, expected)


@pytest.fixture
def quantised(make_model, tmp_path: Path) -> Path:
    """A gpt-oss checkpoint as the hub has it."""
    model = make_model("gpt_oss", hidden_size=64, intermediate_size=32, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "hub")
    tensors = load_file(tmp_path / "hub/model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        units, width, rows = tensors.pop(name).shape
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = packed(units, rows, width // 32)
    save_file(tensors, tmp_path / "hub/model.safetensors")
    fields = json.loads((tmp_path / "hub/config.json").read_text())
    fields["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "hub/config.json").write_text(json.dumps(fields))
    return tmp_path / "hub"


def test_a_packed_checkpoint_is_imported_unpacked(quantised: Path, tmp_path: Path) -> None:
    import_model(quantised, tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "back")
    assert "quantization_config" not in json.loads((tmp_path / "back/config.json").read_text())
    before, after = (load_file(folder / "model.safetensors") for folder in (quantised, tmp_path / "back"))
    for name, tensor in after.items():
        if name in before:
            assert torch.equal(tensor, before[name])
        else:
            assert torch.equal(tensor, convert_moe_packed_tensors(before[f"{name}_blocks"], before[f"{name}_scales"]))


def test_blocks_without_fitting_scales_are_refused(quantised: Path, tmp_path: Path) -> None:
    tensors = load_file(quantised / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj_scales"
    save_file(tensors | {name: tensors[name][:, :-1].contiguous()}, quantised / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name} does not fit"):
        import_model(quantised, tmp_path / "ours")
    del tensors[name]
    save_file(tensors, quantised / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        import_model(quantised, tmp_path / "ours")
