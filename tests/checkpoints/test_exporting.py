"""Export: models that learned something since, models of other kinds, and damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pragnosia.checkpoints import export_model
from pragnosia.errors import CheckpointError, ConfigError, UnsupportedArchitectureError
from pragnosia.model.configuration import AttentionConfig, ExpertsConfig, PragnosiaConfig, ThalamusConfig
from pragnosia.model.modeling import PragnosiaForCausalLM

SOFTMAX = ThalamusConfig(kind="softmax", num_awake=2)
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 64}
ATTENTION = AttentionConfig(num_heads=4, num_key_value_heads=2, head_dim=8, qk_norm="head")


@pytest.fixture
def mixtral(specimen, tmp_path: Path) -> Path:
    """A copy of an imported model that a test may change."""
    shutil.copytree(specimen("mixtral").imported, tmp_path / "ours")
    return tmp_path / "ours"


@pytest.mark.parametrize("family", [None, "qwen3_moe"])
def test_a_model_of_our_own_becomes_another_familys(tmp_path: Path, family: str | None) -> None:
    experts = ExpertsConfig(num_units=6, unit_width=16, thalamus=SOFTMAX, lobes={"left": 2, "right": 4})
    ours = PragnosiaForCausalLM(PragnosiaConfig(**SMALL, attention=ATTENTION, experts=experts)).eval()
    ours.save_pretrained(tmp_path / "ours")
    assert export_model(tmp_path / "ours", tmp_path / "hf", family).family == "qwen3_moe"
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(theirs).__name__ == "Qwen3MoeForCausalLM"
    ids = torch.randint(0, 64, (2, 20))
    with torch.no_grad():
        assert (theirs(ids).logits - ours(ids).logits).abs().max() <= 1e-4


def test_a_model_that_lost_a_unit_keeps_its_family(mixtral: Path, tmp_path: Path) -> None:
    fields = json.loads((mixtral / "config.json").read_text())
    fields["experts"] |= {"num_units": 3, "lobes": {"cortex": 3}}
    (mixtral / "config.json").write_text(json.dumps(fields))
    tensors = load_file(mixtral / "model.safetensors")
    fewer = {name: t[:3].contiguous() if ".bank." in name or ".thalamus." in name else t for name, t in tensors.items()}
    save_file(fewer, mixtral / "model.safetensors", {"format": "pt"})
    assert export_model(mixtral, tmp_path / "hf").family == "mixtral"
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert theirs.config.num_local_experts == 3
    ours = PragnosiaForCausalLM.from_pretrained(mixtral).eval()
    ids = torch.randint(0, 64, (2, 20))
    with torch.no_grad():
        assert (theirs(ids).logits - ours(ids).logits).abs().max() <= 1e-4


def test_precision_changed_since_the_import_is_told(mixtral: Path, tmp_path: Path) -> None:
    PragnosiaForCausalLM.from_pretrained(mixtral, dtype=torch.bfloat16).save_pretrained(mixtral)
    export_model(mixtral, tmp_path / "hf")
    assert json.loads((tmp_path / "hf/config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "hf").dtype == torch.bfloat16


def test_what_a_family_lacks_is_said(mixtral: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"olmoe cannot express this model: .*attention\.qk_norm is None"):
        export_model(mixtral, tmp_path / "hf", "olmoe")
    with pytest.raises(CheckpointError, match="llama cannot express this model"):
        export_model(mixtral, tmp_path / "hf", "llama")
    with pytest.raises(UnsupportedArchitectureError, match=r"bloom.*Supported: llama"):
        export_model(mixtral, tmp_path / "hf", "bloom")
    assert not (tmp_path / "hf").exists()


def test_a_balanced_router_has_no_place_elsewhere(tmp_path: Path) -> None:
    thalamus = ThalamusConfig(kind="softmax", balance_rate=0.01)
    config = PragnosiaConfig(**SMALL, attention=ATTENTION, experts=ExpertsConfig(unit_width=16, thalamus=thalamus))
    PragnosiaForCausalLM(config).save_pretrained(tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"balance_rate is 0\.01"):
        export_model(tmp_path / "ours", tmp_path / "hf", "qwen3_moe")


def test_damaged_models_are_refused(specimen, mixtral: Path, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    with pytest.raises(CheckpointError, match="model_type is 'mixtral', expected a Pragnosia"):
        export_model(specimen("mixtral").source, out)
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        export_model(tmp_path / "absent", out)
    fields = json.loads((mixtral / "config.json").read_text())
    (mixtral / "config.json").write_text(json.dumps(fields | {"hidden_size": 33}))
    with pytest.raises(CheckpointError, match="has shape"):
        export_model(mixtral, out)
    (mixtral / "config.json").write_text(json.dumps(fields | {"hidden_size": "wide"}))
    with pytest.raises(ConfigError, match=r"config\.json: .*hidden_size"):
        export_model(mixtral, out)
    (mixtral / "config.json").write_text(json.dumps(fields))
    (mixtral / "origin.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"origin\.json is not valid JSON"):
        export_model(mixtral, out)
    assert not out.exists()
