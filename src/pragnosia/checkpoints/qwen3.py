"""Qwen3: Qwen2 with a norm over each query and key head in place of the biases."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, final

from transformers import PreTrainedConfig

from pragnosia.checkpoints.family import (
    Family,
    read_attention,
    read_dense,
    read_frame,
    write_dense,
    write_frame,
)
from pragnosia.checkpoints.layout import cortex_rules
from pragnosia.checkpoints.qwen2 import write_layer_types
from pragnosia.checkpoints.rules import Rule
from pragnosia.model.configuration import PragnosiaConfig


@final
class Qwen3(Family):
    """Head norms; biases on all four projections where there are any."""

    name = "qwen3"
    architecture = "Qwen3ForCausalLM"

    def read(self, source: PreTrainedConfig) -> PragnosiaConfig:
        bias = source.attention_bias
        attention = read_attention(source, bias=bias, output_bias=bias, qk_norm="head")
        return read_frame(source, attention, feed_forward=read_dense(source))

    def write(self, config: PragnosiaConfig) -> dict[str, Any]:
        bias = {"attention_bias": config.attention.bias}
        return write_frame(config) | write_dense(config) | write_layer_types(config) | bias

    def weights(self, config: PragnosiaConfig, present: Container[str] = ()) -> list[Rule]:
        return cortex_rules(config)
