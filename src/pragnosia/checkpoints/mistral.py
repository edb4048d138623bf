"""Mistral: Llama without biases, all layers under one sliding window."""

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
    write_window,
)
from pragnosia.checkpoints.layout import cortex_rules
from pragnosia.checkpoints.rules import Rule
from pragnosia.model.configuration import PragnosiaConfig


@final
class Mistral(Family):
    """`sliding_window` alone says that every layer slides."""

    name = "mistral"
    architecture = "MistralForCausalLM"

    def read(self, source: PreTrainedConfig) -> PragnosiaConfig:
        return read_frame(source, read_attention(source), feed_forward=read_dense(source))

    def write(self, config: PragnosiaConfig) -> dict[str, Any]:
        return write_frame(config) | write_dense(config) | {"sliding_window": write_window(config)}

    def weights(self, config: PragnosiaConfig, present: Container[str] = ()) -> list[Rule]:
        return cortex_rules(config)
