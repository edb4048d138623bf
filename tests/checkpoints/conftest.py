"""One tiny random transformers model of each family, saved, imported and exported once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pragnosia.checkpoints import export_model, import_model
from pragnosia.model.modeling import PragnosiaForCausalLM

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32}
UNITS = {"num_experts": 5, "num_experts_per_tok": 2}

# What each family has that the others lack: switched on, so that nothing can hide.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3, "head_dim": 12},
    "mistral": {"sliding_window": 7, "head_dim": 8},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
        "rope_parameters": YARN,
    },
    "qwen3": {"head_dim": 12, "attention_bias": True},
    "qwen3_moe": {
        **UNITS,
        "head_dim": 12,
        "moe_intermediate_size": 16,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
    },
    "mixtral": {"num_local_experts": 4, "sliding_window": 11},
    "olmoe": {**UNITS, "clip_qkv": 0.8, "attention_bias": True},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 6},
}
CONFIGS["gpt_oss"]["rope_parameters"] = YARN | {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}


@dataclass(frozen=True)
class Specimen:
    """A model and where it went."""

    theirs: transformers.PreTrainedModel
    source: Path
    imported: Path
    exported: Path

    @property
    def ours(self) -> PragnosiaForCausalLM:
        """The imported model, loaded afresh."""
        return PragnosiaForCausalLM.from_pretrained(self.imported).eval()


def random_model(family: str, **changes: Any) -> transformers.PreTrainedModel:
    """A transformers model whose every parameter (norms, biases and sinks too) is random."""
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **CONFIGS[family], **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4, generator=generator)
    return model


@pytest.fixture(scope="session")
def specimen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Specimen]:
    """`specimen(family)`: there and back again."""

    @cache
    def made(family: str) -> Specimen:
        folder = tmp_path_factory.mktemp(family)
        theirs = random_model(family)
        theirs.save_pretrained(folder / "hf")
        import_model(folder / "hf", folder / "ours")
        export_model(folder / "ours", folder / "back")
        return Specimen(theirs, folder / "hf", folder / "ours", folder / "back")

    return made


@pytest.fixture(scope="session")
def make_model() -> Callable[..., transformers.PreTrainedModel]:
    """`make_model(family, **changes)`."""
    return random_model
