from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM


def config(**changes: object) -> PragnosiaConfig:
    shape: dict[str, object] = {
        "vocab_size": 97,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "max_position_embeddings": 64,
        "attention": {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6},
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "feed_forward": {"width": 40},
        "feed_forwards": ["experts", "dense", "experts"],
        "experts": {"num_units": 8, "unit_width": 12, "num_shared": 1, "thalamus": {"num_awake": 3}},
    }
    return PragnosiaConfig(**(shape | changes))


@pytest.fixture(scope="session")
def sparse() -> PragnosiaForCausalLM:
    torch.manual_seed(0)
    return PragnosiaForCausalLM(config()).eval()


@pytest.fixture(scope="session")
def make_config() -> object:
    return config


def byte_tokenizer(**special: Any) -> PreTrainedTokenizerFast:
    """A token for each byte, 0 to 255 in the order of their letters, and the special ones after them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Tokenizer(models.BPE({letter: token for token, letter in enumerate(letters)}, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=engine, **special)


@pytest.fixture(scope="session")
def make_byte_tokenizer() -> object:
    return byte_tokenizer
