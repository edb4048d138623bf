"""What a model family is, and what all of them share; a family's own file holds only the difference.

`read` turns transformers' configuration of the family into ours, `write` ours into the fields of theirs, `weights`
pairs the tensors. Nobody has to know what a family can express: a model can be written as a family exactly when
reading what was written gives the same model again (`families.write_config` checks that).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from pragnosia.checkpoints.rules import Rule
from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.model.configuration import AttentionConfig, ExpertsConfig, FeedForwardConfig, PragnosiaConfig

# transformers' name of the function on the gate -> our name of the whole gated unit.
ACTIVATIONS = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu_pytorch_tanh": "geglu",
    "gelu_new": "geglu",
    "relu": "reglu",
}
_GATES = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh", "reglu": "relu", "clamped_swiglu": "silu"}


class Family(ABC):
    """One family of models: its configuration and its tensors, in both directions."""

    name: ClassVar[str]
    """transformers' `model_type`."""
    architecture: ClassVar[str]
    """The entry in `architectures`, and transformers' class."""
    aliases: ClassVar[frozenset[str]] = frozenset()
    """Fields in this family's files that transformers' configuration class does not list, and we understand."""

    quantisations: ClassVar[frozenset[str]] = frozenset({"bitsandbytes", "gptq", "awq"})
    """Names of quantisation methods we can unpack for it."""

    @abstractmethod
    def read(self, source: PreTrainedConfig) -> PragnosiaConfig:
        """Our configuration of the model that `source` describes."""

    @abstractmethod
    def write(self, config: PragnosiaConfig) -> dict[str, Any]:
        """Fields of the family's configuration class. Raises CheckpointError for a model of another kind."""

    @abstractmethod
    def weights(self, config: PragnosiaConfig, present: Container[str] = ()) -> list[Rule]:
        """One rule for each of our tensors; `present` are theirs, where there is more than one layout."""


def read_frame(source: PreTrainedConfig, attention: AttentionConfig, **organs: Any) -> PragnosiaConfig:
    """Everything but the organs, which all families name alike."""
    return PragnosiaConfig(
        vocab_size=source.vocab_size,
        hidden_size=source.hidden_size,
        num_hidden_layers=source.num_hidden_layers,
        max_position_embeddings=source.max_position_embeddings,
        rms_norm_eps=source.rms_norm_eps,
        initializer_range=source.initializer_range,
        tie_word_embeddings=source.tie_word_embeddings,
        use_cache=source.use_cache,
        bos_token_id=source.bos_token_id,
        eos_token_id=source.eos_token_id,
        pad_token_id=source.pad_token_id,
        dtype=source.dtype,
        rope_parameters=_read_rope(source),
        layer_types=_read_layer_types(source, attention.sliding_window),
        attention=attention,
        **organs,
    )


def write_frame(config: PragnosiaConfig) -> dict[str, Any]:
    """The inverse of `read_frame` and `read_attention`, without biases and windows: families name them differently."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.attention.num_heads,
        "num_key_value_heads": config.attention.num_key_value_heads,
        "head_dim": config.attention.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_cache": config.use_cache,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "dtype": config.dtype,
        "rope_parameters": dict(config.rope_parameters or {}),
    }


def read_attention(source: PreTrainedConfig, **more: Any) -> AttentionConfig:
    """Heads and window; `more` is what the family adds."""
    return AttentionConfig(
        num_heads=source.num_attention_heads,
        num_key_value_heads=source.num_key_value_heads,
        head_dim=getattr(source, "head_dim", None) or source.hidden_size // source.num_attention_heads,
        sliding_window=getattr(source, "sliding_window", None),
        **more,
    )


def read_dense(source: PreTrainedConfig, bias: bool = False) -> FeedForwardConfig:
    """The gated feed-forward all of these families share."""
    return FeedForwardConfig(width=source.intermediate_size, activation=read_activation(source), bias=bias)


def read_activation(source: PreTrainedConfig) -> str:
    """Our name for `hidden_act`. Raises ConfigError for one we have no gated unit for."""
    if source.hidden_act not in ACTIVATIONS:
        raise ConfigError(f"hidden_act is {source.hidden_act!r}; we compute only {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[source.hidden_act]


def write_dense(config: PragnosiaConfig) -> dict[str, Any]:
    """Fields of a model whose every layer is dense."""
    dense: FeedForwardConfig = require_everywhere(config, "dense", config.feed_forward)
    return {"intermediate_size": dense.width, "hidden_act": write_activation(dense)}


def write_activation(organ: FeedForwardConfig | ExpertsConfig) -> str:
    """transformers' name for the function on the gate."""
    if organ.activation not in _GATES:
        raise CheckpointError(
            f"activation {organ.activation!r} has no gate; exported families need {', '.join(_GATES)}"
        )
    return _GATES[organ.activation]


def require_everywhere(config: PragnosiaConfig, kind: str, organ: Any) -> Any:
    """`organ`, if every layer's feed-forward is of `kind`. Raises CheckpointError otherwise."""
    kinds = set(config.feed_forwards or ())
    if kinds != {kind}:
        raise CheckpointError(f"its layers are {' and '.join(sorted(kinds))}, expected all {kind}")
    return organ


def write_window(config: PragnosiaConfig) -> int | None:
    """The window, for families in which all layers slide or none does."""
    return config.attention.sliding_window if "sliding_attention" in (config.layer_types or ()) else None


def _read_layer_types(source: PreTrainedConfig, window: int | None) -> list[str]:
    listed = getattr(source, "layer_types", None)
    return list(listed) if listed else ["sliding_attention" if window else "full_attention"] * source.num_hidden_layers


def _read_rope(source: PreTrainedConfig) -> dict[str, Any]:
    rope = dict(source.rope_parameters)
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(f"partial_rotary_factor is {rope['partial_rotary_factor']}; we rotate whole heads only (1.0)")
    nested = [key for key, value in rope.items() if isinstance(value, dict)]
    if nested:
        raise ConfigError(
            f"rope_parameters differ by layer type ({', '.join(nested)}); expected one set for all layers"
        )
    return rope
