"""Qwen3-MoE: Qwen3 with fine-grained units; some layers may stay dense."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, final

from transformers import PreTrainedConfig

from pragnosia.checkpoints.family import (
    Family,
    read_activation,
    read_attention,
    read_dense,
    read_frame,
    write_activation,
    write_frame,
    write_window,
)
from pragnosia.checkpoints.layout import cortex_rules, unit_rules
from pragnosia.checkpoints.rules import Rule
from pragnosia.errors import CheckpointError
from pragnosia.model.configuration import ExpertsConfig, PragnosiaConfig, ThalamusConfig


@final
class Qwen3Moe(Family):
    """Layer i is sparse if (i + 1) % decoder_sparse_step == 0 and i is not in mlp_only_layers."""

    name = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    # Files carry these two from Qwen3; transformers reads the first and ignores the second.
    aliases = frozenset({"head_dim", "max_window_layers"})

    def read(self, source: PreTrainedConfig) -> PragnosiaConfig:
        bias = source.attention_bias
        attention = read_attention(source, bias=bias, output_bias=bias, qk_norm="head")
        kinds = [_kind(source, layer) for layer in range(source.num_hidden_layers)]
        organs = {
            "feed_forward": read_dense(source) if "dense" in kinds else None,
            "experts": _read_experts(source) if "experts" in kinds else None,
        }
        return read_frame(source, attention, feed_forwards=kinds, **organs)

    def write(self, config: PragnosiaConfig) -> dict[str, Any]:
        experts, dense = config.experts, config.feed_forward
        if experts is None:
            raise CheckpointError("it has no units, expected a sparse model")
        fields = {
            "attention_bias": config.attention.bias,
            "sliding_window": write_window(config),
            "use_sliding_window": write_window(config) is not None,
            "num_experts": experts.num_units,
            "num_experts_per_tok": experts.thalamus.num_awake,
            "norm_topk_prob": experts.thalamus.renormalise,
            "moe_intermediate_size": experts.unit_width,
            "hidden_act": write_activation(experts),
            "mlp_only_layers": [i for i, kind in enumerate(config.feed_forwards or ()) if kind == "dense"],
        }
        return write_frame(config) | fields | ({"intermediate_size": dense.width} if dense else {})

    def weights(self, config: PragnosiaConfig, present: Container[str] = ()) -> list[Rule]:
        if config.experts is None:
            return cortex_rules(config)
        parts = ("gate_proj", "up_proj", "down_proj")
        return cortex_rules(config, unit_rules(config.experts.num_units, present, classic="mlp", parts=parts))


def _kind(source: PreTrainedConfig, layer: int) -> str:
    sparse = source.num_experts > 0 and (layer + 1) % source.decoder_sparse_step == 0
    return "experts" if sparse and layer not in source.mlp_only_layers else "dense"


def _read_experts(source: PreTrainedConfig) -> ExpertsConfig:
    return ExpertsConfig(
        num_units=source.num_experts,
        unit_width=source.moe_intermediate_size,
        activation=read_activation(source),
        thalamus=ThalamusConfig(
            kind="softmax", num_awake=source.num_experts_per_tok, renormalise=source.norm_topk_prob
        ),
    )
