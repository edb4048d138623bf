"""Mixtral: Mistral with a few large units; the awake ones' strengths sum to one."""

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
    write_window,
)
from pragnosia.checkpoints.layout import cortex_rules, unit_rules
from pragnosia.checkpoints.rules import Rule
from pragnosia.model.configuration import ExpertsConfig, PragnosiaConfig, ThalamusConfig


@final
class Mixtral(Family):
    """In the files: block_sparse_moe, with w1 the gate, w3 up and w2 down."""

    name = "mixtral"
    architecture = "MixtralForCausalLM"

    def read(self, source: PreTrainedConfig) -> PragnosiaConfig:
        thalamus = ThalamusConfig(kind="softmax", num_awake=source.num_experts_per_tok, renormalise=True)
        experts = ExpertsConfig(
            num_units=source.num_local_experts,
            unit_width=source.intermediate_size,
            activation=read_activation(source),
            thalamus=thalamus,
        )
        return read_frame(source, read_attention(source), experts=experts)

    def write(self, config: PragnosiaConfig) -> dict[str, Any]:
        experts: ExpertsConfig = require_everywhere(config, "experts", config.experts)
        return write_frame(config) | {
            "sliding_window": write_window(config),
            "num_local_experts": experts.num_units,
            "num_experts_per_tok": experts.thalamus.num_awake,
            "intermediate_size": experts.unit_width,
            "hidden_act": write_activation(experts),
        }

    def weights(self, config: PragnosiaConfig, present: Container[str] = ()) -> list[Rule]:
        assert config.experts is not None
        units = unit_rules(config.experts.num_units, present, classic="block_sparse_moe", parts=("w1", "w3", "w2"))
        return cortex_rules(config, units)
