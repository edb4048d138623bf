"""Small models with every organ there is, their biases, norms and balances far from where they start."""

from __future__ import annotations

from typing import Any

import torch

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM

BASE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "attention": {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "bias": True},
}


def experts(**router: Any) -> dict[str, Any]:
    """Six in two lobes, two awake."""
    organ = {"num_units": 6, "unit_width": 8, "num_shared": 1, "bias": True, "lobes": {"a": 2, "b": 4}}
    return {"experts": organ | {"thalamus": {"num_awake": 2, **router}}}


SPARSE: dict[str, dict[str, Any]] = {
    "softmax": experts(kind="softmax"),
    "softmax as it is": experts(kind="softmax", renormalise=False),
    "softmax balanced": experts(kind="softmax", balance_rate=1e-3),
    "sigmoid": experts(kind="sigmoid", balance_rate=1e-3),
    "sigmoid as it is": experts(kind="sigmoid", renormalise=False, scale=2.0, rank=4, bias=True),
    "threshold": experts(kind="threshold"),
    "threshold as it is": experts(kind="threshold", renormalise=False, max_awake=3),
    "columns": {"columns": {"width": 64, "column_width": 8, "num_speaking": 3}},
    "mixed": experts(kind="sigmoid")
    | {"feed_forward": {"width": 20}, "feed_forwards": ["experts", "dense", "experts"], "tie_word_embeddings": False},
}
DENSE: dict[str, dict[str, Any]] = {
    "dense": {"feed_forward": {"width": 20, "bias": True}},
    "memory": {
        "feed_forward": {"width": 20},
        "feed_forwards": ["dense", "memory", "dense"],
        "hippocampus": {"num_rows": 256, "num_heads": 2, "num_awake": 4, "key_width": 8},
    },
    "dendrites": {"feed_forward": {"width": 20}, "dendrites": {"num_dendrites": 3}},
    "slots": {
        "feed_forward": {"width": 20},
        "working_memory": {"layers": [1], "segment": 4, "num_slots": 4},
        "workspace": {"layers": [2], "segment": 4, "num_slots": 4},
        "exits": {"layers": [1]},
        "fleeting": {"layers": [0, 2]},
    },
    "gates": {
        "feed_forward": {"width": 20},
        "gates": {"layers": [1]},
        "attention": BASE["attention"] | {"qk_norm": "head"},
    },
    "spiking": {
        "lif": {"width": 20},
        "attention": BASE["attention"] | {"qk_norm": "full", "sinks": True, "sliding_window": 5},
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "tie_word_embeddings": False,
    },
}


def at_work(organs: dict[str, Any], seed: int = 0) -> PragnosiaForCausalLM:
    """A model with these organs."""
    torch.manual_seed(seed)
    model = PragnosiaForCausalLM(PragnosiaConfig(**{**BASE, **organs}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("bias", "sinks")) or "o_proj" in name or "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("thresholds"):
                buffer.uniform_(0.3, 0.7)
            if name.endswith("balance"):
                buffer.normal_(std=0.1)
    return model.eval()


def words(batch: int = 2, length: int = 20) -> torch.Tensor:
    """Tokens (B, T)."""
    return torch.randint(0, BASE["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(7))
