"""Qwen2: Llama with biases on queries, keys and values, and a sliding window on the upper layers."""

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
class Qwen2(Family):
    """Below `max_window_layers` attention is full; transformers resolves that to `layer_types`."""

    name = "qwen2"
    architecture = "Qwen2ForCausalLM"
    aliases = frozenset({"head_dim"})

    def read(self, source: PreTrainedConfig) -> PragnosiaConfig:
        return read_frame(source, read_attention(source, bias=True), feed_forward=read_dense(source))

    def write(self, config: PragnosiaConfig) -> dict[str, Any]:
        return write_frame(config) | write_dense(config) | write_layer_types(config)

    def weights(self, config: PragnosiaConfig, present: Container[str] = ()) -> list[Rule]:
        return cortex_rules(config)


def write_layer_types(config: PragnosiaConfig) -> dict[str, Any]:
    """The window and the layers that slide, as Qwen2 and Qwen3 name them."""
    window = config.attention.sliding_window
    return {
        "layer_types": list(config.layer_types or ()),
        "sliding_window": window,
        "use_sliding_window": window is not None,
    }
