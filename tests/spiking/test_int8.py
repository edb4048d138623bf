"""Weights in eight bits: what rounding costs, and that every way through a packed model has the same spikes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pragnosia import NeuroGenForCausalLM, kernels
from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.learning import learning_rule
from pragnosia.quantisation.spikes import packed
from pragnosia.spiking import neurogen
from pragnosia.spiking.int8 import across, rounded, rounded_synapses, through, weights_of

MakeMind = Callable[..., NeuroGenForCausalLM]
compiled = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")


def test_a_row_is_rounded_by_its_own_scale() -> None:
    weight = torch.randn(7, 5) * torch.logspace(-3, 3, 7)[:, None]
    weight[3] = 0
    eight, scale = rounded(weight)
    assert eight.dtype is torch.int8
    error = (weight - eight * scale[:, None]).abs().amax(1)
    assert bool((error <= scale * 0.5001).all())
    starts = torch.arange(0, 36, 5, dtype=torch.int32)
    same, scales = rounded_synapses(weight.flatten(), starts)
    assert torch.equal(same.view(7, 5), eight)
    assert torch.equal(scales, scale)
    x, y = torch.randn(3, 7), torch.randn(3, 5)
    torch.testing.assert_close(through(x, eight, scale), x @ (eight * scale[:, None]))
    torch.testing.assert_close(across(y, eight, scale), y @ (eight * scale[:, None]).T)


@compiled
@pytest.mark.parametrize("brain", ["one", "two"])
@pytest.mark.parametrize("changes", [{"plastic": True, "lines": 3}, {"plastic": False, "rank": None}])
@torch.no_grad()
def test_a_packed_model_says_nearly_the_same(
    make_mind: MakeMind, tokens: Tensor, brain: str, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_mind(brain, **changes)
    small = packed(model)
    assert sum(one.nbytes for one in weights_of(small)) < 0.4 * sum(one.nbytes for one in weights_of(model))
    assert sum(one.numel() for one in weights_of(small)) == sum(one.numel() for one in weights_of(model))
    by_events = small(tokens, output_counts=True)
    told = model(tokens, output_counts=True)
    assert float((by_events.counts != told.counts).float().mean()) < 0.02
    monkeypatch.setattr(neurogen, "takes_events", lambda _: False)
    by_products = small(tokens, output_counts=True)
    assert torch.equal(by_events.counts, by_products.counts)
    torch.testing.assert_close(by_events.logits, by_products.logits)
    # a model in single precision with the rounded numbers says the same
    for wires, eight in zip(model.wires, small.wires, strict=True):
        wires.weight.copy_(eight.strengths())
    for part, names in (("enter", ("codes", "spread")), ("read", ("down", "up"))):
        for name in names:
            there = getattr(small, part)
            if getattr(there, name) is not None:
                numbers = getattr(there, name) * getattr(there, name + "_scale")[:, None]
                getattr(getattr(model, part), name).copy_(numbers)
    rounded_ = model(tokens, output_counts=True)
    assert torch.equal(rounded_.counts, by_events.counts)
    torch.testing.assert_close(rounded_.logits, by_events.logits, rtol=1e-4, atol=1e-4)


def test_packed_it_is_saved_carries_its_state_and_does_not_learn(
    make_mind: MakeMind, tokens: Tensor, tmp_path: Path
) -> None:
    small = packed(make_mind("two", vocab_size=12, lines=2))
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert list(again.sizes) == ["ear", "mouth"]
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, small(tokens).logits)
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 11}
    said = small.generate(tokens, **how)
    assert torch.equal(said, small.generate(tokens, use_cache=False, **how))
    rule = learning_rule("surrogate", mind="spiking model")
    with pytest.raises(ConfigError, match="int8, which cannot learn"):
        rule.learn(small, tokens, 1.0)
    with pytest.raises(CheckpointError, match="int8 already"):
        packed(small)
    with pytest.raises(ConfigError, match="weights"):
        make_mind(weights="int4")


def test_regions_keep_their_order(make_mind: MakeMind, tmp_path: Path) -> None:
    brain = {"neuron": {"kind": "lifa", "threshold_mv": 1}, "populations": {"z": {"size": 4}, "a": {"size": 5}}}
    model = make_mind(brain=brain, into=["a"])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert list(again.sizes) == list(model.sizes) == ["z", "a"]
    assert again.config.brain == model.config.brain
