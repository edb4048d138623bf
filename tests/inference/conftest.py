"""A small speaker: random weights, a tokenizer of all bytes, some merges and two special tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pragnosia import Pragnosia, PragnosiaConfig, PragnosiaForCausalLM

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [
    *[("t", "h"), ("th", "e"), ("Ġ", "the"), ("e", "r"), ("U", "s"), ("Us", "er"), (":", "Ġ"), ("Ċ", "User")],
    ("ì", "ķ"),  # two of the three bytes of many Korean syllables
]
CONTEXT = 192


def byte_tokenizer(**special: Any) -> PreTrainedTokenizerFast:
    """Every byte, a few merges, <end>, <user> and <assistant>."""
    vocabulary = [*BYTES, *("".join(pair) for pair in MERGES), "<end>", "<user>", "<assistant>"]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>", "<user>", "<assistant>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", **special)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def make_model(tokenizer: PreTrainedTokenizerFast) -> Callable[..., PragnosiaForCausalLM]:
    """`make_model(…)`: a tiny model that knows the tokenizer's tokens."""

    def make(**changes: Any) -> PragnosiaForCausalLM:
        shape: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "max_position_embeddings": CONTEXT,
            "initializer_range": 0.3,
            "tie_word_embeddings": False,
            "attention": {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 6},
            "experts": {"num_units": 8, "unit_width": 5, "thalamus": {"kind": "softmax", "num_awake": 4}},
        }
        torch.manual_seed(0)
        model: PragnosiaForCausalLM = PragnosiaForCausalLM(PragnosiaConfig(**(shape | changes)))
        return model.eval()  # type: ignore[no-any-return,no-untyped-call]

    return make


@pytest.fixture(scope="session")
def directory(
    make_model: Callable[..., PragnosiaForCausalLM],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The model and its tokenizer, saved; tests copy it before they break it."""
    folder = tmp_path_factory.mktemp("speaker")
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def speaker(directory: Path) -> Pragnosia:
    return Pragnosia.from_pretrained(directory)
