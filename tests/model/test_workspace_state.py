"""What a workspace tells of itself is what the model computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pragnosia.errors import ConfigError, PromptError
from pragnosia.model.modeling import PragnosiaForCausalLM

Make = Callable[..., PragnosiaForCausalLM]
SLOTS: dict[str, Any] = {"num_slots": 3, "segment": 4, "num_heads": 2, "head_dim": 6, "fading": 0.5}


@pytest.fixture
def model(tiny_model: Make) -> PragnosiaForCausalLM:
    return tiny_model(workspace={"layers": [1], **SLOTS}, working_memory={"layers": [1], **SLOTS})


@pytest.fixture
def text() -> Tensor:
    """11 tokens: two segments that end, and one that runs."""
    return torch.randint(0, 61, (11,), generator=torch.Generator().manual_seed(3))


def said(model: PragnosiaForCausalLM, text: Tensor) -> Tensor:
    """Strengths that modules' words for every token bring along, (T, 3), by hooks on the modules."""
    layer, heard = model.model.layers[1], {}
    hooks = [
        organ.register_forward_hook(lambda _, __, output, name=name: heard.update({name: output[0][0]}))
        for name, organ in (("0", layer.mixer), ("1", layer.feed_forward), ("2", layer.working_memory))
    ]
    model(text[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    words = layer.workspace.norm(torch.stack([heard[name] for name in "012"], 1))  # (T, 3, D)
    return (words * layer.workspace.slots.salience.weight).sum(-1)


@torch.no_grad()
def test_who_stands_and_how_clearly(model: PragnosiaForCausalLM, text: Tensor) -> None:
    told = model.workspace_state(text)
    strengths, modules, fading = said(model, text), ("attention", "experts", "working_memory"), SLOTS["fading"]
    rivals = [(float(strengths[place, m]), place, m) for place in range(4) for m in range(3)]
    first = sorted(rivals, reverse=True)[:3]
    rivals_then = [(s - fading, place, m) for s, place, m in first]
    rivals_then += [(float(strengths[place, m]), place, m) for place in range(4, 8) for m in range(3)]
    second = sorted(rivals_then, reverse=True)[:3]

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    def share(winners: list[Any], rivals: list[Any]) -> float:
        return sum(sigmoid(s - fading) for s, *_ in winners) / sum(sigmoid(s - fading) for s, *_ in rivals)

    assert [(w.place, w.module) for w in told.layers[0].winners] == [(place, modules[m]) for _, place, m in second]
    for winner, (strength, place, _) in zip(told.layers[0].winners, second, strict=True):
        assert winner.strength == pytest.approx(sigmoid(strength - fading), rel=1e-4)
        assert winner.token == str(int(text[place]))
    assert told.awareness == pytest.approx((share(first, rivals) + share(second, rivals_then)) / 2, rel=1e-4)
    total = sum(sigmoid(s - fading) for s, *_ in second)
    for m, module in enumerate(modules):
        mine = sum(sigmoid(s - fading) for s, _, which in second if which == m)
        assert told.attention[module] == pytest.approx(mine / total, rel=1e-4)
    assert sum(told.memory) + told.layers[0].unread == pytest.approx(1, rel=1e-5)
    assert all(weight > 0 for weight in told.memory)


@torch.no_grad()
def test_what_it_changes_in_the_next_word(model: PragnosiaForCausalLM, text: Tensor) -> None:
    told = model.workspace_state(text)
    reads = model(text[None]).logits[0, -1].softmax(-1)
    space = model.model.layers[1].workspace
    kept = space.slots.o_proj.weight.clone()
    # Nothing lies behind the workspace of the last layer, so that silencing all tokens silences the last alone.
    space.slots.o_proj.weight.zero_()
    deaf = model(text[None]).logits[0, -1].softmax(-1)
    silent = model.workspace_state(text).intention
    space.slots.o_proj.weight.copy_(kept)
    assert told.intention.bits == pytest.approx(float((reads * (reads / deaf).log2()).sum()), rel=1e-3)
    assert told.intention.bits > 0
    gain = (reads / deaf).log2()
    assert [int(name) for name, _ in told.intention.lifted] == gain.topk(5).indices.tolist()
    assert told.intention.lifted[0][1] == pytest.approx(float(gain.max()), rel=1e-3)
    assert silent.bits == pytest.approx(0, abs=1e-6)


@torch.no_grad()
def test_equals_tell_nobody_apart(model: PragnosiaForCausalLM, text: Tensor) -> None:
    salience = model.model.layers[1].workspace.slots.salience.weight
    salience.zero_()
    assert model.workspace_state(text[:5]).awareness == pytest.approx(3 / 12)
    salience[1] = 50 * torch.randn(24, generator=torch.Generator().manual_seed(1))  # one module shouts now and then
    loud = model.workspace_state(text[:5])
    assert loud.awareness > 3 / 12
    assert loud.layers[0].winners[0].module == "experts"
    assert loud.attention["experts"] > 0.5


@torch.no_grad()
def test_nothing_stands_before_a_segment_has_ended(model: PragnosiaForCausalLM, text: Tensor) -> None:
    told = model.workspace_state(text[:4].tolist())
    assert told.awareness == 0
    assert told.memory == ()
    assert told.layers[0].winners == ()
    assert told.layers[0].unread == pytest.approx(1)
    assert told.intention.bits == pytest.approx(0, abs=1e-6)
    assert set(told.to_dict()) == {"awareness", "attention", "memory", "intention", "layers"}


def test_without_a_workspace(tiny_model: Make, model: PragnosiaForCausalLM) -> None:
    with pytest.raises(ConfigError, match="no workspace to look into"):
        tiny_model().workspace_state([1, 2])
    with pytest.raises(PromptError, match="no token to read"):
        model.workspace_state([])
