"""Llama: grouped-query attention, gated feed-forward; the family the others are described against."""

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
from pragnosia.checkpoints.rules import Rule
from pragnosia.model.configuration import PragnosiaConfig


@final
class Llama(Family):
    """Biases, if any, stand on all four projections, or on all three matrices of the feed-forward."""

    name = "llama"
    architecture = "LlamaForCausalLM"

    def read(self, source: PreTrainedConfig) -> PragnosiaConfig:
        attention = read_attention(source, bias=source.attention_bias, output_bias=source.attention_bias)
        return read_frame(source, attention, feed_forward=read_dense(source, bias=source.mlp_bias))

    def write(self, config: PragnosiaConfig) -> dict[str, Any]:
        dense = write_dense(config)
        biases = {"attention_bias": config.attention.bias, "mlp_bias": config.feed_forward.bias}
        return write_frame(config) | dense | biases

    def weights(self, config: PragnosiaConfig, present: Container[str] = ()) -> list[Rule]:
        return cortex_rules(config)
