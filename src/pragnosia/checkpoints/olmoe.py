"""OLMoE: fine-grained units, a norm over all query (and key) heads together, and clipped projections."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, final

from transformers import PreTrainedConfig

from pragnosia.checkpoints.family import (
    Family,
    read_activation,
    read_attention,
    read_frame,
    require_everywhere,
    write_activation,
    write_frame,
)
from pragnosia.checkpoints.layout import cortex_rules, unit_rules
from pragnosia.checkpoints.rules import Rule
from pragnosia.model.configuration import ExpertsConfig, PragnosiaConfig, ThalamusConfig


@final
class Olmoe(Family):
    """The awake units' strengths are as they fall, unless `norm_topk_prob`."""

    name = "olmoe"
    architecture = "OlmoeForCausalLM"

    def read(self, source: PreTrainedConfig) -> PragnosiaConfig:
        bias = source.attention_bias
        attention = read_attention(source, bias=bias, output_bias=bias, qk_norm="full", clip_qkv=source.clip_qkv)
        experts = ExpertsConfig(
            num_units=source.num_experts,
            unit_width=source.intermediate_size,
            activation=read_activation(source),
            thalamus=ThalamusConfig(
                kind="softmax", num_awake=source.num_experts_per_tok, renormalise=source.norm_topk_prob
            ),
        )
        return read_frame(source, attention, experts=experts)

    def write(self, config: PragnosiaConfig) -> dict[str, Any]:
        experts: ExpertsConfig = require_everywhere(config, "experts", config.experts)
        fields = write_frame(config) | {
            "attention_bias": config.attention.bias,
            "clip_qkv": config.attention.clip_qkv,
            "num_experts": experts.num_units,
            "num_experts_per_tok": experts.thalamus.num_awake,
            "norm_topk_prob": experts.thalamus.renormalise,
            "intermediate_size": experts.unit_width,
            "hidden_act": write_activation(experts),
        }
        del fields["head_dim"]  # always hidden_size / num_attention_heads here
        return fields

    def weights(self, config: PragnosiaConfig, present: Container[str] = ()) -> list[Rule]:
        assert config.experts is not None
        parts = ("gate_proj", "up_proj", "down_proj")
        return cortex_rules(config, unit_rules(config.experts.num_units, present, classic="mlp", parts=parts))
