"""The cortex as a citizen of transformers: loaded, saved, split, trained and asked to generate like any of its models.

What it computes is in cortex.py; here is only what transformers wants to know.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex, CortexLayer, CortexStack, initialise


class PragnosiaLayer(GradientCheckpointingLayer, CortexLayer):
    """A layer that may keep only what went in, and compute again on the way back."""


class PragnosiaPreTrainedModel(PreTrainedModel):
    """What transformers needs to know to load, save, split and initialise us."""

    config_class = PragnosiaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["PragnosiaLayer"]  # noqa: RUF012  (transformers reads it so)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    # What moves in steps of a thousandth would stand still in bfloat16.
    _keep_in_fp32_modules_strict = ["balance", "thresholds", "num_observed", "steering", "center", "spread"]  # noqa: RUF012
    _supports_sdpa = True
    _can_compile_fullgraph = True

    def _init_weights(self, module: nn.Module) -> None:
        config: Any = self.config
        initialise(module, config)


class PragnosiaModel(PragnosiaPreTrainedModel, CortexStack):
    """The stack: token ids to hidden states."""

    def __init__(self, config: PragnosiaConfig) -> None:
        super().__init__(config)
        self.grow(config, PragnosiaLayer)
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]


class PragnosiaForCausalLM(PragnosiaPreTrainedModel, Cortex, GenerationMixin):
    """The stack with its voice: token ids to the logits of the next token."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  (transformers reads it so)

    def __init__(self, config: PragnosiaConfig) -> None:
        super().__init__(config)
        self.grow(config, PragnosiaModel(config))
        self.post_init()  # type: ignore[no-untyped-call]
