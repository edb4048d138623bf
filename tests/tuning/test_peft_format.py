"""Adapters in PEFT's format, both ways, against PEFT itself on transformers' models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import pragnosia  # noqa: F401  (its models join transformers' Auto classes)
from pragnosia import kernels
from pragnosia.checkpoints import import_model
from pragnosia.checkpoints.blueprint import blueprint, described_config
from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.quantisation.packing import pack_model
from pragnosia.tuning import peft_format
from pragnosia.tuning.configuration import LoraConfig
from pragnosia.tuning.peft_format import read_adapter, write_adapter

peft = pytest.importorskip("peft")
pytestmark = [
    # PEFT asks by the old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT looks only among modules when it warns, also of patterns it has used for a parameter.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
]

ALL = ("attention", "units", "dense")
STACKED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
LINEAR = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]

# What PEFT may be asked for: linear layers of every kind, parameters, both; ranks and scales of their own.
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"target_modules": LINEAR}),
    ("llama", {"target_modules": "all-linear"}),
    (
        "llama",
        {
            "target_modules": ["up_proj", "q_proj"],
            "rank_pattern": {"layers.0.self_attn.q_proj": 5, "up_proj": 2},
            "alpha_pattern": {"up_proj": 7},
        },
    ),
    ("llama", {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]}),
    ("qwen3", {"target_modules": LINEAR, "use_rslora": True}),
    ("mixtral", {"target_modules": ["q_proj"], "target_parameters": STACKED}),
    ("mixtral", {"target_modules": ["o_proj", "w1", "w2", "w3"]}),
    ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": STACKED}),
    ("qwen3_moe", {"target_modules": LINEAR}),
    ("olmoe", {"target_modules": ["k_proj"], "target_parameters": STACKED[1:]}),
    ("olmoe", {"target_parameters": STACKED[:1], "rank_pattern": {"experts.gate_up_proj": 6}}),
    ("gpt_oss", {"target_modules": ["o_proj"], "target_parameters": STACKED}),
]


def wrapped(folder: Path, adapter: Path) -> Any:
    """transformers' model with the adapter, as PEFT loads it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return peft.PeftModel.from_pretrained(model, adapter)


def made_by_peft(folder: Path, out: Path, **asked: Any) -> Any:
    """A model that PEFT has wrapped with random adapters, saved to `out`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, **asked)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    adapted.save_pretrained(out)
    return adapted


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def made(family_folder: Callable[..., Path], tools: Any, tmp_path: Path) -> tuple[Path, Path, dict[str, Tensor]]:
    """A Llama, an adapter of it on disk, and its factors."""
    folder, config = family_folder("llama"), LoraConfig(rank=3, targets=ALL)
    tensors = tools.adapters(folder, config)
    write_adapter(tmp_path / "adapter", tensors, config, folder)
    return folder, tmp_path / "adapter", tensors


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        *((family, ALL) for family in ("llama", "qwen3", "mixtral", "qwen3_moe", "olmoe", "gpt_oss")),
        *((family, ("units",)) for family in ("mixtral", "qwen3_moe", "olmoe", "gpt_oss")),
        *((family, ("dense",)) for family in ("llama", "qwen3", "qwen3_moe")),
    ],
)
def test_peft_computes_with_ours(
    family: str, targets: tuple[str, ...], family_folder: Callable[..., Path], tools: Any, tmp_path: Path
) -> None:
    folder, config = family_folder(family), LoraConfig(rank=3, alpha=5.0, targets=targets)
    tensors = tools.adapters(folder, config)
    write_adapter(tmp_path / "adapter", tensors, config, folder)
    theirs = tools.their_logits(wrapped(folder, tmp_path / "adapter"))
    torch.testing.assert_close(theirs, tools.adapted_logits(folder, tensors, config), atol=1e-5, rtol=1e-5)
    assert (theirs - tools.adapted_logits(folder, {}, config)).abs().max() > 0.01, "the adapter does something"
    again, found = read_adapter(tmp_path / "adapter", folder)
    assert same(again, tensors)
    assert (found.rank, found.alpha) == (3, 5.0)
    assert set(found.targets) <= set(targets)


@pytest.mark.parametrize(("family", "asked"), ASKED)
def test_ours_computes_with_pefts(
    family: str, asked: dict[str, Any], family_folder: Callable[..., Path], tools: Any, tmp_path: Path
) -> None:
    folder = family_folder(family)
    theirs = tools.their_logits(made_by_peft(folder, tmp_path / "theirs", **asked))
    tensors, config = read_adapter(tmp_path / "theirs", folder)
    torch.testing.assert_close(tools.adapted_logits(folder, tensors, config), theirs, atol=1e-5, rtol=1e-5)
    write_adapter(tmp_path / "ours", tensors, config, folder)
    back = tools.their_logits(wrapped(folder, tmp_path / "ours"))
    torch.testing.assert_close(back, theirs, atol=1e-5, rtol=1e-5)


def test_a_model_no_family_can_express(own_folder: Path, tools: Any, tmp_path: Path) -> None:
    config = LoraConfig(rank=3, alpha=5.0, targets=ALL)
    tensors = tools.adapters(own_folder, config)
    assert len(tensors) == 2 * (2 * 4 + 2 + 2 + 2)
    write_adapter(tmp_path / "adapter", tensors, config, own_folder)
    theirs = tools.their_logits(wrapped(own_folder, tmp_path / "adapter"))
    torch.testing.assert_close(theirs, tools.adapted_logits(own_folder, tensors, config), atol=1e-5, rtol=1e-5)
    assert same(read_adapter(tmp_path / "adapter", own_folder)[0], tensors)
    asked = {"target_modules": ["q_proj", "shared.up"], "target_parameters": ["bank.up", "bank.down"]}
    theirs = tools.their_logits(made_by_peft(own_folder, tmp_path / "theirs", **asked))
    tensors, config = read_adapter(tmp_path / "theirs", own_folder)
    torch.testing.assert_close(tools.adapted_logits(own_folder, tensors, config), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_an_imported_model_bears_its_familys_names_or_our_own(
    family: str, family_folder: Callable[..., Path], tools: Any, tmp_path: Path
) -> None:
    source, config = family_folder(family), LoraConfig(rank=2, targets=ALL)
    ours = tmp_path / "ours"
    import_model(source, ours)
    tensors = tools.adapters(ours, config)
    expected = tools.adapted_logits(ours, tensors, config)
    write_adapter(tmp_path / "theirs", tensors, config, ours)
    write_adapter(tmp_path / "own", tensors, config, ours, own_names=True)
    for folder, adapter in ((source, "theirs"), (ours, "own")):
        theirs = tools.their_logits(wrapped(folder, tmp_path / adapter))
        torch.testing.assert_close(theirs, expected, atol=1e-5, rtol=1e-5)
        for model in (source, ours):
            assert same(read_adapter(tmp_path / adapter, model)[0], tensors), "either is read for either"


def test_some_layers_only_and_other_ranks(family_folder: Callable[..., Path], tools: Any, tmp_path: Path) -> None:
    folder, config = family_folder("qwen3_moe"), LoraConfig(rank=4, alpha=3.0, targets=ALL)
    wide = tools.adapters(folder, LoraConfig(rank=6, targets=("attention", "units")))
    wide = {name: tensor for name, tensor in wide.items() if ".k_proj." in name or "up_" in name}
    tensors = tools.adapters(folder, config) | wide
    tensors = {name: tensor for name, tensor in tensors.items() if ".1.mixer.q_proj" not in name}
    write_adapter(tmp_path / "adapter", tensors, config, folder)
    theirs = tools.their_logits(wrapped(folder, tmp_path / "adapter"))
    torch.testing.assert_close(theirs, tools.adapted_logits(folder, tensors, config), atol=1e-5, rtol=1e-5)
    assert same(read_adapter(tmp_path / "adapter", folder)[0], tensors)


@pytest.mark.parametrize(
    ("family", "block", "parts"),
    [("mixtral", "block_sparse_moe", ("w1", "w3", "w2")), ("olmoe", "mlp", ("gate_proj", "up_proj", "down_proj"))],
)
def test_units_that_were_modules_one_by_one(
    family: str, block: str, parts: tuple[str, str, str], family_folder: Callable[..., Path], tools: Any, tmp_path: Path
) -> None:
    """As PEFT wrote them on transformers 4; PEFT itself turns them on transformers 5, and is the reference."""
    folder = family_folder(family)
    config = transformers.AutoConfig.from_pretrained(folder)
    units = config.num_local_experts
    width, hidden = config.intermediate_size, config.hidden_size
    tensors = {}
    for layer in range(config.num_hidden_layers):
        for unit in range(units):
            for part in parts:
                rows, columns = (hidden, width) if part == parts[2] else (width, hidden)
                stem = f"base_model.model.model.layers.{layer}.{block}.experts.{unit}.{part}"
                tensors[f"{stem}.lora_A.weight"] = torch.randn(3, columns) * 0.2
                tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, 3) * 0.2
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_modules": list(parts), "peft_version": "0.17.0"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    theirs = tools.their_logits(wrapped(folder, tmp_path))
    found, lora = read_adapter(tmp_path, folder)
    assert found["model.layers.0.feed_forward.bank.up_a"].shape == (units, 6, hidden), "gate's and up's"
    torch.testing.assert_close(tools.adapted_logits(folder, found, lora), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_parameters_as_peft_laid_them_before_0_19(
    family: str, family_folder: Callable[..., Path], tools: Any, tmp_path: Path
) -> None:
    """Then (U, out, in) was taken for (U, in, out), in this equation of its ParamWrapper."""
    folder = family_folder(family)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    block = model.model.layers[0].mlp.experts
    tensors = {}
    with torch.no_grad():
        for prefix, weight in (("base_layer.", block.gate_up_proj), ("", block.down_proj)):
            units, first, second = weight.shape
            a, b = torch.randn(units * 3, first) * 0.2, torch.randn(second, 3 * units) * 0.2
            stem = f"base_model.model.model.layers.0.mlp.experts.{prefix}lora"
            tensors |= {f"{stem}_A.weight": a, f"{stem}_B.weight": b}
            split_a, split_b = a.reshape(units, -1, first), b.reshape(second, -1, units)
            weight += torch.einsum("o r e, e r i -> e i o", split_b, split_a) * (5 / 3)
    if family == "qwen3_moe":
        assert block.gate_up_proj.shape[1] == block.gate_up_proj.shape[2], "shapes alone could not tell"
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_parameters": STACKED, "peft_version": "0.18.1"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    found, lora = read_adapter(tmp_path, folder)
    theirs = tools.their_logits(model)
    torch.testing.assert_close(tools.adapted_logits(folder, found, lora), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"init_lora_weights": "pissa"}, "changed the model's own weights"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication"),
        ({"some_new_switch": 1}, "some_new_switch is 1, which we do not compute"),
        ({"r": 0}, "r is 0, expected a whole number"),
        ({"lora_alpha": "much"}, "lora_alpha is 'much'"),
        ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
        ({"r": 5}, "has rank 3, adapter_config.json says 5"),
    ],
)
def test_what_we_do_not_compute_is_refused_by_name(
    changes: dict[str, Any], words: str, made: tuple[Path, Path, Any]
) -> None:
    folder, adapter, _ = made
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=words) as refused:
        read_adapter(adapter, folder)
    assert "\n" not in str(refused.value)


def test_what_is_off_is_no_switch(made: tuple[Path, Path, Any]) -> None:
    folder, adapter, tensors = made
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": False, "some_new_switch": None, "kasa": {}}))
    assert same(read_adapter(adapter, folder)[0], tensors)


def test_another_models_adapter(made: tuple[Path, Path, Any], family_folder: Callable[..., Path]) -> None:
    _, adapter, _ = made
    for other, words in (
        (family_folder("llama", hidden_size=48), r"made for another model: lora_B of .* \(32, 3\), .* for \(48, 3\)"),
        (family_folder("llama", num_hidden_layers=1), r"made for another model: it adapts model\.layers\.1\."),
        (family_folder("mixtral"), r"made for another model: it adapts .*mlp\.\w+_proj"),
    ):
        with pytest.raises(CheckpointError, match=words):
            read_adapter(adapter, other)


def test_files_that_are_missing_pickled_or_broken(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    folder, adapter, _ = made
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    broken = {
        "only one of lora_A and lora_B": dict(list(tensors.items())[1:]),
        "no matrix of finite numbers": tensors | {next(iter(tensors)): torch.full((3, 32), torch.nan)},
        "no low-rank factor": tensors | {"base_model.model.lm_head.modules_to_save.weight": torch.ones(2, 2)},
        "it adapts lm_head": tensors
        | {f"base_model.model.lm_head.lora_{letter}.weight": torch.ones(3, 3) for letter in "AB"},
        "twice, under two names": tensors
        | {
            f"base_model.model.model.layers.0.feed_forward.down.lora_{letter}.weight": torch.ones(shape)
            for letter, shape in (("A", (3, 48)), ("B", (32, 3)))
        },
        "holds no adapters": {},
    }
    for words, changed in broken.items():
        save_file(changed, weights)
        with pytest.raises(CheckpointError, match=words):
            read_adapter(adapter, folder)
    weights.write_bytes(weights.read_bytes()[:7])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        read_adapter(adapter, folder)
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled adapter \(adapter_model\.bin\)"):
        read_adapter(adapter, folder)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"holds no adapter_model\.safetensors"):
        read_adapter(adapter, folder)
    (adapter / "adapter_config.json").write_text("{")
    weights.touch()
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_adapter(adapter, folder)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no adapter_config\.json"):
        read_adapter(adapter, folder)
    with pytest.raises(CheckpointError, match="no adapter at"):
        read_adapter(tmp_path / "nowhere", folder)


def test_factors_that_do_not_fit_are_not_written(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    folder, _, tensors = made
    name = "model.layers.0.mixer.q_proj.lora_a"
    for words, changed in (
        ("has no .*q_proj.lora_a", {key: value for key, value in tensors.items() if key != name}),
        ("has no place for model.layers.9", tensors | {"model.layers.9.mixer.q_proj.lora_a": tensors[name]}),
        (r"q_proj.lora_a has shape \(3, 7\)", tensors | {name: torch.zeros(3, 7)}),
        ("adapts nothing", {}),
    ):
        with pytest.raises(CheckpointError, match=words):
            write_adapter(tmp_path / "out", changed, LoraConfig(rank=3), folder)
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_the_adapter_before(
    made: tuple[Path, Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, adapter, tensors = made

    def full(path: Path, _: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(peft_format, "write_safetensors", full)
    changed = {name: tensor * 2 for name, tensor in tensors.items()}
    with pytest.raises(CheckpointError, match="No space left"):
        write_adapter(adapter, changed, LoraConfig(rank=3, targets=ALL), folder)
    assert same(read_adapter(adapter, folder)[0], tensors)
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_configuration_is_enough_to_read(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    folder, adapter, tensors = made
    assert same(read_adapter(adapter, described_config(folder))[0], tensors)
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    assert same(read_adapter(adapter, tmp_path / "bare")[0], tensors), "weights are not needed"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rank": 0}, "lora.rank is 0"),
        ({"rank": 2.5}, "lora.rank is 2.5"),
        ({"alpha": float("nan")}, "lora.alpha is nan"),
        ({"targets": ()}, "lora.targets is empty"),
        ({"targets": ("atention",)}, "Did you mean 'attention'"),
    ],
)
def test_a_wrong_configuration(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LoraConfig(**values)


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("family", ["mixtral", "olmoe", "gpt_oss"])
def test_an_adapter_of_a_packed_model_is_one_of_its_source(
    family: str, family_folder: Callable[..., Path], tools: Any, tmp_path: Path
) -> None:
    folder, config = family_folder(family), LoraConfig(rank=3, targets=("attention", "units"))
    pack_model(blueprint(folder), tmp_path / "packed", "int8")
    tensors = tools.adapters(folder, config)
    write_adapter(tmp_path / "adapter", tensors, config, tmp_path / "packed")
    theirs = tools.their_logits(wrapped(folder, tmp_path / "adapter"))
    torch.testing.assert_close(theirs, tools.adapted_logits(folder, tensors, config), atol=1e-5, rtol=1e-5)
    assert same(read_adapter(tmp_path / "adapter", tmp_path / "packed")[0], tensors)
