"""Each family, against transformers: the same logits, the same tokens, the same tensors back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from pragnosia.checkpoints import FAMILIES, export_model, import_model, read_family
from pragnosia.checkpoints.families import family_named, fitting_family, read_config, write_config
from pragnosia.errors import CheckpointError, ConfigError, UnsupportedArchitectureError
from pragnosia.model.configuration import ExpertsConfig, PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM

SPARSE = ("qwen3_moe", "mixtral", "olmoe")
every_family = pytest.mark.parametrize("family", FAMILIES)


def prompt(*shape: int) -> Tensor:
    return torch.randint(3, 96, shape, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def largest_difference(theirs: PreTrainedModel, ours: PragnosiaForCausalLM, ids: Tensor, **more: Any) -> float:
    expected, got = theirs(ids, **more).logits, ours(ids, **more).logits
    assert expected.std() > 0.5  # otherwise closeness would prove little
    return float((expected - got).abs().max())


def test_every_family_has_a_specimen(specimen) -> None:
    for family in FAMILIES:
        assert family_named(family).name == family
        assert specimen(family).theirs.config.model_type == family


@every_family
def test_logits_agree(specimen, family: str) -> None:
    it = specimen(family)
    assert largest_difference(it.theirs, it.ours, prompt(2, 60)) <= 1e-4


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_agree_under_padding(specimen, family: str, side: str) -> None:
    it, ids = specimen(family), prompt(3, 20)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 4, 11)):
        mask[row, slice(padding) if side == "left" else slice(20 - padding, None)] = 0
    with torch.no_grad():
        expected, got = (model(ids, attention_mask=mask).logits for model in (it.theirs, it.ours))
    assert (expected - got)[mask.bool()].abs().max() <= 1e-4


@every_family
def test_greedy_tokens_agree_with_and_without_cache(specimen, family: str) -> None:
    it, ids = specimen(family), prompt(1, 9)
    settings = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False}
    expected = it.theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    for use_cache in (True, False):
        got = it.ours.generate(ids, attention_mask=torch.ones_like(ids), use_cache=use_cache, **settings)
        assert torch.equal(got, expected)


@every_family
def test_greedy_tokens_of_a_padded_batch_agree(specimen, family: str) -> None:
    it, ids = specimen(family), prompt(2, 12)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    assert torch.equal(it.ours.generate(ids, **settings), it.theirs.generate(ids, **settings))


@every_family
def test_export_gives_identical_tensors_and_configuration(specimen, family: str) -> None:
    it = specimen(family)
    before, after = (load_file(folder / "model.safetensors") for folder in (it.source, it.exported))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = type(it.theirs).from_pretrained(it.exported)
    assert again.state_dict().keys() == it.theirs.state_dict().keys()
    assert all(torch.equal(tensor, it.theirs.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert comparable(again.config.to_dict()) == comparable(it.theirs.config.to_dict())


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "_name_or_path"}


@every_family
def test_a_model_of_unknown_origin_finds_its_family(specimen, family: str, tmp_path: Path) -> None:
    config = PragnosiaConfig.from_pretrained(specimen(family).imported)
    assert fitting_family(config).name == family
    written = write_config(family_named(family), config)
    theirs = type(specimen(family).theirs.config).from_dict(written)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in AutoModelForCausalLM.from_config(theirs).state_dict().items()}
    assert shapes == {name: t.shape for name, t in specimen(family).theirs.state_dict().items()}


@pytest.mark.parametrize("family", SPARSE)
def test_stacked_units_are_read_too(specimen, family: str, tmp_path: Path) -> None:
    it = specimen(family)
    it.theirs.save_pretrained(tmp_path / "stacked", save_original_format=False)
    assert any(name.endswith("gate_up_proj") for name in load_file(tmp_path / "stacked/model.safetensors"))
    import_model(tmp_path / "stacked", tmp_path / "ours")
    expected, got = (load_file(folder / "model.safetensors") for folder in (it.imported, tmp_path / "ours"))
    assert all(torch.equal(expected[name], got[name]) for name in expected | got)


ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.3, "beta_fast": 16.0},
    "longrope": {
        "short_factor": [1.0 + 0.1 * i for i in range(6)],
        "long_factor": [2.0 + 0.5 * i for i in range(6)],
        "original_max_position_embeddings": 32,
        "factor": 4.0,
    },
}


@pytest.mark.parametrize("kind", ROPES)
def test_rope_scalings_are_carried_over(make_model, kind: str, tmp_path: Path) -> None:
    rope = {"rope_type": kind, "rope_theta": 1000.0, **ROPES[kind]}
    theirs = make_model("llama", rope_parameters=rope, max_position_embeddings=48)
    theirs.save_pretrained(tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "ours")
    ours = PragnosiaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    for length in (20, 70):  # within, and beyond the length of pre-training
        assert largest_difference(theirs, ours, prompt(1, length)) <= 1e-4


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True}),
        ("llama", {"hidden_act": "relu", "attention_bias": False, "num_key_value_heads": 4}),
        ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": [], "norm_topk_prob": False}),
        ("qwen3_moe", {"mlp_only_layers": [0, 1, 2], "use_sliding_window": True, "sliding_window": 5}),
        ("mistral", {"sliding_window": None, "dtype": torch.bfloat16}),
        ("olmoe", {"norm_topk_prob": True, "clip_qkv": None}),
        ("gpt_oss", {"layer_types": ["full_attention"] * 3, "attention_bias": False}),
    ],
)
def test_variants(make_model, family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = make_model(family, **changes)
    theirs.save_pretrained(tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "ours")
    ours = PragnosiaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert ours.dtype == theirs.dtype
    assert largest_difference(theirs.float(), ours.float(), prompt(1, 40)) <= 1e-4
    export_model(tmp_path / "ours", tmp_path / "back")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hf", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


@every_family
def test_configurations_of_the_hub_are_read_and_given_back_as_they_were(specimen, family: str, tmp_path: Path) -> None:
    it = specimen(family)
    fields = json.loads((it.source / "config.json").read_text())
    rope = fields.pop("rope_parameters")
    fields["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    fields["rope_scaling"] = {"type": kind, **rope} if kind != "default" else None
    fields["torch_dtype"] = fields.pop("dtype")
    fields.pop("transformers_version")
    fields |= {"use_mrope": False, "temperature": 0.7, "_name_or_path": "somewhere"}
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "model.safetensors").symlink_to(it.source / "model.safetensors")
    import_model(folder, tmp_path / "ours")
    ours = PragnosiaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert largest_difference(it.theirs, ours, prompt(1, 40)) <= 1e-4
    export_model(tmp_path / "ours", tmp_path / "back")
    assert json.loads((tmp_path / "back/config.json").read_text()) == fields


def test_a_head_beside_tied_embeddings_is_dropped_if_equal_and_kept_if_not(specimen, tmp_path: Path) -> None:
    it = specimen("qwen2")
    for name, noise in (("equal", 0.0), ("different", 0.1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_bytes((it.source / "config.json").read_bytes())
        tensors = load_file(it.source / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + noise
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        import_model(folder, folder / "ours")
        ours = PragnosiaForCausalLM.from_pretrained(folder / "ours").eval()
        assert ours.config.tie_word_embeddings == (not noise)
        assert largest_difference(AutoModelForCausalLM.from_pretrained(folder), ours, prompt(1, 20)) <= 1e-4
        export_model(folder / "ours", folder / "back")
        assert ("lm_head.weight" in load_file(folder / "back/model.safetensors")) == bool(noise)


def changed(specimen: Callable[[str], Any], family: str, **changes: Any) -> dict[str, Any]:
    return json.loads((specimen(family).source / "config.json").read_text()) | changes


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"attention_multiplier": 0.5}, "attention_multiplier"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved"),
        ("llama", {"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\)"),
        ("gpt_oss", {"quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\)"),
        ("gpt_oss", {"swiglu_alpha": 1.5}, "swiglu_alpha"),
        ("qwen3", {"hidden_size": "wide"}, "hidden_size"),
        ("qwen3", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ("mistral", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "factor"),
        ("mistral", {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "spiral"),
        ("mistral", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "config.json"),
        ("olmoe", {"num_experts_per_tok": 9}, "num_awake"),
    ],
)
def test_what_would_be_lost_is_refused(specimen, family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(changed(specimen, family, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config_json",
    [
        {"model_type": "gemma3", "architectures": ["Gemma3ForCausalLM"]},
        {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["Gemma3ForCausalLM"]},
        {},
        {"model_type": ["llama"], "architectures": "LlamaForCausalLM"},
    ],
)
def test_an_unsupported_architecture_is_named_and_the_supported_are_listed(config_json: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedArchitectureError) as caught:
        read_family(config_json)
    named = config_json.get("architectures", ["None"])
    assert (named if isinstance(named, str) else named[0]) in str(caught.value)
    assert all(family in str(caught.value) for family in FAMILIES)


def test_a_model_no_family_can_express_is_refused_with_the_reason() -> None:
    config = PragnosiaConfig(experts=ExpertsConfig(num_units=4, num_shared=1))
    with pytest.raises(CheckpointError, match=r"mixtral cannot express.*experts\.num_shared is 1, there 0"):
        write_config(family_named("mixtral"), config)
    with pytest.raises(CheckpointError, match="llama cannot express this model: its layers are experts"):
        write_config(family_named("llama"), config)
    with pytest.raises(CheckpointError, match=r"the nearest is mixtral, where experts\.num_shared is 1, there 0; expe"):
        fitting_family(config)
    with pytest.raises(UnsupportedArchitectureError, match="gpt2"):
        family_named("gpt2")
