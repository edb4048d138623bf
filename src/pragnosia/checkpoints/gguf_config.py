"""The metadata of a GGUF file as the config.json of the Hugging Face model it was made from.

What llama.cpp does not write down it computes always in the same way, and so does this: Qwen3-MoE's strengths sum to
one, OLMoE's do not, gpt-oss slides in every other layer. Architectures: llama.cpp, src/models/.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pragnosia.checkpoints.admission import unsupported
from pragnosia.checkpoints.gguf_header import Header
from pragnosia.errors import CheckpointError

_EMBEDDINGS, _HEAD, ROPE = "token_embd.weight", "output.weight", "rope_freqs.weight"
_NAMES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "mistral": ("mistral", "MistralForCausalLM"),
    "mixtral": ("mixtral", "MixtralForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
    "olmoe": ("olmoe", "OlmoeForCausalLM"),
    "gpt-oss": ("gpt_oss", "GptOssForCausalLM"),
}


def config_json(header: Header, path: Path, read: Callable[[str], list[float]]) -> dict[str, Any]:
    """A config.json for the file; `read` gives a small tensor's numbers. Raises CheckpointError for what cannot be."""
    kind = known_architecture(header, path)
    keys = _Keys(header, path)
    model_type, architecture = _NAMES[kind]
    values = {"model_type": model_type, "architectures": [architecture], **_frame(keys, read)}
    organs: dict[str, Callable[[_Keys], dict[str, Any]]] = {
        "llama": _llama,
        "mistral": lambda keys: {"sliding_window": keys["attention.sliding_window"]},
        "mixtral": _mixtral,
        "qwen2": lambda _: {},
        "qwen3": lambda keys: {"attention_bias": keys.has("attn_q.bias")},
        "qwen3moe": _qwen3_moe,
        "olmoe": _olmoe,
        "gpt-oss": _gpt_oss,
    }
    values |= organs[kind](keys)
    return {key: value for key, value in values.items() if value is not None}


def known_architecture(header: Header, path: Path) -> str:
    """Ours of the file's: llama.cpp has one for three that Hugging Face tells apart.

    Raises UnsupportedArchitectureError.
    """
    name = header.architecture
    if name not in _NAMES or name in ("mistral", "mixtral"):
        raise unsupported(f"{path}: GGUF architecture {name!r}")
    if name != "llama":
        return name
    if header.metadata.get("llama.expert_count", 0):
        return "mixtral"
    return "mistral" if header.metadata.get("llama.attention.sliding_window") else "llama"


class _Keys:
    """Metadata of the architecture, by the names that all of them share."""

    def __init__(self, header: Header, path: Path) -> None:
        self.header, self.path = header, path

    def __getitem__(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise CheckpointError(f"{self.path}: its metadata lack {self.header.architecture}.{name}; fetch it again")
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """As dict.get; a list of equal numbers, one for each layer, is that number."""
        value = self.header.metadata.get(f"{self.header.architecture}.{name}", default)
        if isinstance(value, list) and name != "attention.sliding_window_pattern":
            if len(set(value)) != 1:
                raise CheckpointError(f"{self.path}: {name} differs from layer to layer, {value}; we read only one")
            value = value[0]
        return _as_written(value) if isinstance(value, float) else value

    def token(self, name: str) -> int | None:
        """The id of a special token."""
        value: int | None = self.header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value

    def has(self, name: str) -> bool:
        """Whether the first layer holds this tensor."""
        return f"blk.0.{name}" in self.header.tensors


def _as_written(value: float) -> float:
    """The shortest number of single precision: 1e-06, where the file's four bytes say 9.99999997e-07."""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


def _frame(keys: _Keys, read: Callable[[str], list[float]]) -> dict[str, Any]:
    """What all of them name alike."""
    tensors = keys.header.tensors
    if _EMBEDDINGS not in tensors:
        raise CheckpointError(f"{keys.path}: tensor {_EMBEDDINGS} is missing; it holds no language model")
    _check_counts(keys)
    heads, width = keys["attention.head_count"], keys["embedding_length"]
    head_dim = keys.get("attention.key_length") or width // max(1, heads)
    for name in ("rope.dimension_count", "attention.value_length"):
        if keys.get(name, head_dim) != head_dim:
            raise CheckpointError(
                f"{keys.path}: {name} is {keys[name]}, the heads' width {head_dim}; expected the same"
            )
    ends = [token for name in ("eos", "eot", "eom") if (token := keys.token(name)) is not None]
    ends = list(dict.fromkeys(ends))
    return {
        "vocab_size": tensors[_EMBEDDINGS].shape[0],
        "hidden_size": width,
        "intermediate_size": keys.get("feed_forward_length"),
        "num_hidden_layers": keys["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": keys.get("attention.head_count_kv", heads),
        "head_dim": None if keys.header.architecture == "olmoe" and head_dim * heads == width else head_dim,
        "max_position_embeddings": keys["context_length"],
        "rms_norm_eps": keys["attention.layer_norm_rms_epsilon"],
        "tie_word_embeddings": _HEAD not in tensors,
        "bos_token_id": keys.token("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": keys.token("padding"),
        "rope_parameters": _rope(keys, head_dim, read),
    }


def _check_counts(keys: _Keys) -> None:
    """Raise CheckpointError where the metadata count what the file does not hold: nothing is built by such numbers."""
    held = keys.header.tensors
    router = held.get("blk.0.ffn_gate_inp.weight")
    present = {int(name.split(".")[1]) for name in held if re.match(r"blk\.\d+\.", name)}
    counts = {
        "block_count": (keys["block_count"], len(present)),
        "embedding_length": (keys["embedding_length"], held[_EMBEDDINGS].shape[-1]),
        "expert_count": (keys.get("expert_count", 0), router.shape[0] if router is not None else 0),
    }
    for name, (told, found) in counts.items():
        if told != found:
            raise CheckpointError(
                f"{keys.path}: its metadata say {name} is {told}, its tensors say {found}; fetch it again"
            )
    for name in ("attention.head_count", "attention.head_count_kv", "attention.key_length", "context_length"):
        if not 0 < keys.get(name, 1) < 1 << 24:
            raise CheckpointError(f"{keys.path}: its metadata say {name} is {keys.get(name)}; fetch it again")


def _rope(keys: _Keys, head_dim: int, read: Callable[[str], list[float]]) -> dict[str, Any]:
    theta = keys.get("rope.freq_base", 10000.0)
    kind = keys.get("rope.scaling.type", "none")
    base = {"rope_theta": float(theta)}
    if ROPE in keys.header.tensors:
        if keys.header.tensors[ROPE].shape != (head_dim // 2,):
            raise CheckpointError(f"{keys.path}: {ROPE} does not fit heads of width {head_dim}; fetch it again")
        return base | _by_factors(read(ROPE), float(theta), head_dim, keys["context_length"])
    if kind == "none":
        return base | {"rope_type": "default"}
    if kind == "linear":
        return base | {"rope_type": "linear", "factor": keys["rope.scaling.factor"]}
    if kind != "yarn":
        raise CheckpointError(f"{keys.path}: rope.scaling.type is {kind!r}; we read none, linear and yarn")
    yarn = {
        "rope_type": "yarn",
        "factor": keys["rope.scaling.factor"],
        "original_max_position_embeddings": keys["rope.scaling.original_context_length"],
        "attention_factor": keys.get("rope.scaling.yarn_attn_factor"),
        "beta_fast": keys.get("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.get("rope.scaling.yarn_beta_slow", 1.0),
        "truncate": False if keys.header.architecture == "gpt-oss" else None,
    }
    return base | {key: value for key, value in yarn.items() if value is not None}


def _by_factors(factors: list[float], theta: float, head_dim: int, context: int) -> dict[str, Any]:
    """Llama 3's scaling, of which the file keeps only what each frequency is divided by; else those numbers."""
    llama3 = {
        "rope_type": "llama3",
        "factor": max(factors),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if all(
        math.isclose(got, want, rel_tol=1e-4)
        for got, want in zip(factors, _llama3_factors(llama3, theta, head_dim), strict=True)
    ):
        return llama3
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }


def _llama3_factors(rope: Mapping[str, Any], theta: float, head_dim: int) -> list[float]:
    """What each frequency is divided by: one for short waves, `factor` for long ones, between them in between."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for i in range(0, head_dim, 2):
        turns = rope["original_max_position_embeddings"] / (2 * math.pi * theta ** (i / head_dim))
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - share) / factor + share))
    return factors


def _llama(keys: _Keys) -> dict[str, Any]:
    return {"attention_bias": keys.has("attn_q.bias"), "mlp_bias": keys.has("ffn_up.bias")}


def _mixtral(keys: _Keys) -> dict[str, Any]:
    return {
        "num_local_experts": keys["expert_count"],
        "num_experts_per_tok": keys["expert_used_count"],
        "sliding_window": keys.get("attention.sliding_window"),
    }


def _qwen3_moe(keys: _Keys) -> dict[str, Any]:
    return {
        "attention_bias": keys.has("attn_q.bias"),
        "num_experts": keys["expert_count"],
        "num_experts_per_tok": keys["expert_used_count"],
        "moe_intermediate_size": keys["expert_feed_forward_length"],
        "norm_topk_prob": keys.get("expert_weights_norm", True),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _olmoe(keys: _Keys) -> dict[str, Any]:
    return {
        "attention_bias": keys.has("attn_q.bias"),
        "clip_qkv": keys.get("attention.clamp_kqv") or None,
        "num_experts": keys["expert_count"],
        "num_experts_per_tok": keys["expert_used_count"],
        "norm_topk_prob": keys.get("expert_weights_norm", False),
    }


def _gpt_oss(keys: _Keys) -> dict[str, Any]:
    return {
        "attention_bias": keys.has("attn_q.bias"),
        "num_local_experts": keys["expert_count"],
        "num_experts_per_tok": keys["expert_used_count"],
        "intermediate_size": keys["expert_feed_forward_length"],
        "sliding_window": keys["attention.sliding_window"],
        "layer_types": ["full_attention" if layer % 2 else "sliding_attention" for layer in range(keys["block_count"])],
    }
