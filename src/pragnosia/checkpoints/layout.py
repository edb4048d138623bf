"""How the families lay out their tensors: what is common to all, as rules.

In each of `model.layers.{i}`:

    input_layernorm | self_attn.{q,k,v,o}_proj, {q,k}_norm, sinks | post_attention_layernorm | mlp.…
"""

from __future__ import annotations

from collections.abc import Callable, Container

from pragnosia.checkpoints.rules import Joined, Rule, same
from pragnosia.model.configuration import PragnosiaConfig

UnitRules = Callable[[str, str], list[Rule]]
"""(our feed-forward's name, their layer's name) -> the rules of its router and units."""


def cortex_rules(config: PragnosiaConfig, units: UnitRules | None = None) -> list[Rule]:
    """The whole model; `units` lays out the sparse layers."""
    rules: list[Rule] = [same("model.embed_tokens.weight", "model.embed_tokens.weight")]
    for layer, kind in enumerate(config.feed_forwards or ()):
        name = f"model.layers.{layer}"
        rules += _attention_rules(config, name)
        if kind == "dense":
            rules += _dense_rules(config, name)
        else:
            assert units is not None
            rules += units(f"{name}.feed_forward", name)
    rules.append(same("model.norm.weight", "model.norm.weight"))
    if not config.tie_word_embeddings:
        rules.append(same("lm_head.weight", "lm_head.weight"))
    return rules


def unit_rules(num_units: int, present: Container[str], *, classic: str, parts: tuple[str, str, str]) -> UnitRules:
    """A router and units that lie one by one in the files, or stacked as transformers 5 holds them in memory.

    `classic` is the block's name in the classic layout, `parts` the names there of gate, up and down.
    """

    def rules(ours: str, layer: str) -> list[Rule]:
        stacked = f"{layer}.mlp.experts"
        router = f"{layer}.mlp.gate.weight"
        theirs = f"{layer}.{classic}"
        gate, up, down = (f"{theirs}.experts.{{unit}}.{part}.weight" for part in parts)
        if f"{stacked}.gate_up_proj" in present:
            laid: list[Rule] = [
                same(f"{ours}.bank.up", f"{stacked}.gate_up_proj"),
                same(f"{ours}.bank.down", f"{stacked}.down_proj"),
            ]
        else:
            laid = [
                Joined(f"{ours}.bank.up", (gate, up), num_units),
                Joined(f"{ours}.bank.down", (down,), num_units),
            ]
        return [
            same(f"{ours}.thalamus.weight", router if router in present else f"{theirs}.gate.weight"),
            *laid,
        ]

    return rules


def _attention_rules(config: PragnosiaConfig, layer: str) -> list[Rule]:
    organ = config.attention
    tensors = [f"{name}_proj.weight" for name in "qkvo"]
    tensors += [f"{name}_proj.bias" for name in "qkv"] if organ.bias else []
    tensors += ["o_proj.bias"] if organ.output_bias else []
    tensors += ["q_norm.weight", "k_norm.weight"] if organ.qk_norm else []
    tensors += ["sinks"] if organ.sinks else []
    return [
        same(f"{layer}.mixer_norm.weight", f"{layer}.input_layernorm.weight"),
        *(same(f"{layer}.mixer.{tensor}", f"{layer}.self_attn.{tensor}") for tensor in tensors),
        same(f"{layer}.feed_forward_norm.weight", f"{layer}.post_attention_layernorm.weight"),
    ]


def _dense_rules(config: PragnosiaConfig, layer: str) -> list[Rule]:
    assert config.feed_forward is not None
    kinds = ("weight", "bias") if config.feed_forward.bias else ("weight",)
    return [
        rule
        for kind in kinds
        for rule in (
            Joined(
                f"{layer}.feed_forward.up.{kind}",
                (f"{layer}.mlp.gate_proj.{kind}", f"{layer}.mlp.up_proj.{kind}"),
            ),
            same(f"{layer}.feed_forward.down.{kind}", f"{layer}.mlp.down_proj.{kind}"),
        )
    ]
