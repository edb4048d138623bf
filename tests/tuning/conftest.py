"""Tiny random transformers models, random adapters, and what an adapted model is: its weights, changed by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from pragnosia.checkpoints.blueprint import described_config
from pragnosia.inference.loading import load_model
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.tuning.configuration import LoraConfig

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
UNITS = {"num_experts": 5, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"mlp_bias": True, "head_dim": 12},
    "qwen3": {"head_dim": 12, "tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 4},
    # Units whose up has as many rows as columns hide a swap of the two axes from every check of shapes.
    "qwen3_moe": {**UNITS, "head_dim": 12, "moe_intermediate_size": 16, "mlp_only_layers": [1]},
    "olmoe": UNITS,
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 6},
}


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`family_folder(family, **changes)`: a saved transformers model whose every parameter is random."""

    @cache
    def made(family: str, **changes: Any) -> Path:
        config = transformers.AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **changes})
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2)
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of ours that no family can express: shared units, a sigmoid thalamus, a dense layer."""
    config = PragnosiaConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        max_position_embeddings=64,
        attention={"num_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
        feed_forward={"width": 24},
        experts={"num_units": 6, "unit_width": 16, "num_shared": 1, "thalamus": {"kind": "sigmoid", "num_awake": 2}},
        feed_forwards=["experts", "dense"],
    )
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("own")
    PragnosiaForCausalLM(config).save_pretrained(folder)
    return folder


def adapters(folder: Path, config: LoraConfig) -> dict[str, Tensor]:
    """Random factors for every matrix the targets name: written down from the list in the brief, layer by layer."""
    described = described_config(folder)
    with torch.device("meta"):
        weights = PragnosiaForCausalLM(described).state_dict()
    generator = torch.Generator().manual_seed(3)
    found: dict[str, Tensor] = {}

    def add(name: str, *, bank: bool = False) -> None:
        *units, rows, columns = weights[name if bank else f"{name}.weight"].shape
        stem = f"{name}_" if bank else f"{name}.lora_"
        for letter, shape in (("a", (*units, config.rank, columns)), ("b", (*units, rows, config.rank))):
            found[f"{stem}{letter}"] = torch.randn(shape, generator=generator) * 0.2

    for layer, part in itertools.product(range(described.num_hidden_layers), ("up", "down")):
        place = f"model.layers.{layer}.feed_forward"
        if f"{place}.bank.up" in weights and "units" in config.targets:
            add(f"{place}.bank.{part}", bank=True)
        for dense in (place, f"{place}.shared"):
            if f"{dense}.up.weight" in weights and "dense" in config.targets:
                add(f"{dense}.{part}")
    if "attention" in config.targets:
        for layer, letter in itertools.product(range(described.num_hidden_layers), "qkvo"):
            add(f"model.layers.{layer}.mixer.{letter}_proj")
    return found


IDS = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def adapted_logits(folder: Path, tensors: Mapping[str, Tensor], config: LoraConfig) -> Tensor:
    """Of our model in `folder`, its weights changed by hand."""
    model = load_model(folder)
    weights = dict(model.named_parameters())
    for name in tensors:
        if name.endswith("lora_a"):
            stem = name.removesuffix("lora_a")
            weights[f"{stem}weight"] += config.alpha / config.rank * tensors[f"{stem}lora_b"] @ tensors[name]
        elif name.endswith("_a"):
            for unit, (a, b) in enumerate(zip(tensors[name], tensors[f"{name[:-1]}b"], strict=True)):
                weights[name.removesuffix("_a")][unit] += config.alpha / config.rank * b @ a
    return model(IDS, use_cache=False).logits


@torch.no_grad()
def their_logits(model: Any) -> Tensor:
    """Of a transformers model, wrapped by PEFT or not."""
    return model.eval()(IDS, use_cache=False).logits


@pytest.fixture(scope="session")
def tools() -> Any:
    """What stands here, for tests that cannot import a conftest."""
    import types

    return types.SimpleNamespace(
        adapters=adapters, adapted_logits=adapted_logits, their_logits=their_logits, families=tuple(FAMILIES), ids=IDS
    )
