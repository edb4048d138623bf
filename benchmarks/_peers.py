"""Twins: one shape of mixture, as transformers' Qwen3-MoE has it and as we have it, and the tokens they are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from pragnosia import PragnosiaConfig

IMPLEMENTATIONS = ("eager", "grouped_mm")
"""transformers' ways to compute experts that are worth a race; its third, batched_mm, is 20 to 30 times slower."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What both architectures have in common. Ours then routes as Qwen3-MoE does: softmax, renormalised."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    units: int
    awake: int
    unit_width: int
    tied: bool = True
    context: int = 2048

    def theirs(self, **others: Any) -> Qwen3MoeConfig:
        """transformers' configuration; `others` are further fields of it."""
        return Qwen3MoeConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            head_dim=self.head_width,
            moe_intermediate_size=self.unit_width,
            num_experts=self.units,
            num_experts_per_tok=self.awake,
            norm_topk_prob=True,
            tie_word_embeddings=self.tied,
            max_position_embeddings=self.context,
            architectures=["Qwen3MoeForCausalLM"],
            **others,
        )

    def their_model(self, implementation: str) -> Qwen3MoeForCausalLM:
        """transformers' model of random weights, computing its experts in one of `IMPLEMENTATIONS`."""
        model = Qwen3MoeForCausalLM(self.theirs())
        model.set_experts_implementation(implementation)
        return model

    def ours(self) -> PragnosiaConfig:
        """Our configuration, balanced as our presets are."""
        thalamus = {"kind": "softmax", "num_awake": self.awake, "balance_rate": 1e-3}
        return self._ours(experts={"num_units": self.units, "unit_width": self.unit_width, "thalamus": thalamus})

    def dense(self) -> PragnosiaConfig:
        """Ours without a router: as wide as what is awake."""
        return self._ours(feed_forward={"width": self.awake * self.unit_width})

    def _ours(self, **feed_forward: Any) -> PragnosiaConfig:
        return PragnosiaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            attention={
                "num_heads": self.heads,
                "num_key_value_heads": self.key_heads,
                "head_dim": self.head_width,
                "qk_norm": "head",
            },
            tie_word_embeddings=self.tied,
            max_position_embeddings=self.context,
            **feed_forward,
        )


def small(units: int, awake: int, unit_width: int) -> Mixture:
    """A few million parameters: what two cores train."""
    return Mixture(
        vocabulary=8192, width=256, layers=4, heads=4, key_heads=2, head_width=64,
        units=units, awake=awake, unit_width=unit_width,
    )  # fmt: skip


def middling(units: int, awake: int, unit_width: int) -> Mixture:
    """A few hundred million: what a GPU trains."""
    return Mixture(
        vocabulary=32_768, width=1024, layers=8, heads=16, key_heads=4, head_width=64,
        units=units, awake=awake, unit_width=unit_width,
    )  # fmt: skip


def large(
    layers: int = 12,
    units: int = 64,
    awake: int = 4,
    width: int = 2048,
    unit_width: int = 768,
    vocabulary: int = 32_000,
) -> Mixture:
    """Billions: 7.97 GB in bfloat16 as it stands, of which a token wakes 1.04."""
    return Mixture(
        vocabulary=vocabulary, width=width, layers=layers, heads=32, key_heads=4, head_width=128,
        units=units, awake=awake, unit_width=unit_width, tied=False, context=4096,
    )  # fmt: skip
