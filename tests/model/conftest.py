"""Tiny cortices: every organ at its smallest, weights large enough that each one is felt in the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "attention": {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 6},
    "experts": {
        "num_units": 8,
        "unit_width": 5,
        "lobes": {"language": 3, "reasoning": 5},
        "thalamus": {"kind": "softmax", "num_awake": 2},
    },
}


def changed(shape: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`shape` with `changes`, mapping into mapping; a change of None takes the organ away."""
    result = dict(shape)
    for key, value in changes.items():
        inside = result.get(key)
        result[key] = changed(inside, value) if isinstance(inside, dict) and isinstance(value, dict) else value
    return result


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., PragnosiaConfig]:
    """`tiny_config(attention={"bias": True})`: the tiny shape, changed in depth."""

    def make(**changes: Any) -> PragnosiaConfig:
        return PragnosiaConfig(**changed(SHAPE, changes))

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config: Callable[..., PragnosiaConfig]) -> Callable[..., PragnosiaForCausalLM]:
    """`tiny_model(…)`: a model of that shape in evaluation mode; every parameter is random, biases and sinks too."""

    def make(**changes: Any) -> PragnosiaForCausalLM:
        torch.manual_seed(0)
        model: PragnosiaForCausalLM = PragnosiaForCausalLM(tiny_config(**changes)).train(False)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1 or not parameter.any():
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two rows of 12 token ids."""
    return torch.randint(0, SHAPE["vocab_size"], (2, 12), generator=torch.Generator().manual_seed(7))
