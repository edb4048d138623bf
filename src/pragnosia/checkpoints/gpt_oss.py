"""gpt-oss: attention sinks, alternating windows, biases everywhere, units with interleaved columns.

The units compute a clamped SwiGLU:

    y = down((clamp(up, -7, 7) + 1) * g * sigmoid(1.702 g)),   g = min(gate, 7)
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, final

from transformers import PreTrainedConfig

from pragnosia.checkpoints.family import Family, read_attention, read_frame, require_everywhere, write_frame
from pragnosia.checkpoints.layout import cortex_rules
from pragnosia.checkpoints.rules import PerUnit, Rule, same
from pragnosia.errors import ConfigError
from pragnosia.model.configuration import ExpertsConfig, PragnosiaConfig, ThalamusConfig

_ALPHA, _LIMIT = 1.702, 7.0


@final
class GptOss(Family):
    """A softmax over the awake units' scores alone is the softmax over all, renormalised over the awake."""

    name = "gpt_oss"
    architecture = "GptOssForCausalLM"
    # They repeat num_experts_per_tok and original_max_position_embeddings.
    aliases = frozenset({"experts_per_token", "initial_context_length"})
    quantisations = Family.quantisations | {"mxfp4"}

    def read(self, source: PreTrainedConfig) -> PragnosiaConfig:
        # Fields by these names came with transformers 5.2x; before, the numbers were fixed.
        alpha, limit = getattr(source, "swiglu_alpha", _ALPHA), getattr(source, "swiglu_limit", _LIMIT)
        if (alpha, limit) != (_ALPHA, _LIMIT):
            raise ConfigError(f"swiglu_alpha, swiglu_limit are {alpha}, {limit}; we compute only {_ALPHA}, {_LIMIT}")
        bias = source.attention_bias
        experts = ExpertsConfig(
            num_units=source.num_local_experts,
            unit_width=source.intermediate_size,
            activation="clamped_swiglu",
            bias=True,
            thalamus=ThalamusConfig(kind="softmax", num_awake=source.num_experts_per_tok, renormalise=True, bias=True),
        )
        attention = read_attention(source, bias=bias, output_bias=bias, sinks=True)
        return read_frame(source, attention, experts=experts)

    def write(self, config: PragnosiaConfig) -> dict[str, Any]:
        experts: ExpertsConfig = require_everywhere(config, "experts", config.experts)
        return write_frame(config) | {
            "attention_bias": config.attention.bias,
            "layer_types": list(config.layer_types or ()),
            "sliding_window": config.attention.sliding_window,
            "num_local_experts": experts.num_units,
            "num_experts_per_tok": experts.thalamus.num_awake,
            "intermediate_size": experts.unit_width,
        }

    def weights(self, config: PragnosiaConfig, present: Container[str] = ()) -> list[Rule]:
        return cortex_rules(config, _unit_rules)


def _unit_rules(ours: str, layer: str) -> list[Rule]:
    theirs = f"{layer}.mlp.experts"
    return [
        same(f"{ours}.thalamus.weight", f"{layer}.mlp.router.weight"),
        same(f"{ours}.thalamus.bias", f"{layer}.mlp.router.bias"),
        PerUnit(f"{ours}.bank.up", f"{theirs}.gate_up_proj", transposed=True, interleaved=True),
        PerUnit(f"{ours}.bank.up_bias", f"{theirs}.gate_up_proj_bias", interleaved=True),
        PerUnit(f"{ours}.bank.down", f"{theirs}.down_proj", transposed=True),
        same(f"{ours}.bank.down_bias", f"{theirs}.down_proj_bias"),
    ]
