"""A spiking language model as transformers sees it: state, padding, beams, saving, and two ways with one result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from pragnosia import NeuroGenConfig, NeuroGenForCausalLM, kernels
from pragnosia.errors import ConfigError
from pragnosia.spiking import neurogen

MakeMind = Callable[..., NeuroGenForCausalLM]
compiled = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")


@pytest.mark.parametrize("brain", ["one", "two"])
@torch.no_grad()
def test_a_text_in_parts_is_the_text(make_mind: MakeMind, tokens: Tensor, brain: str) -> None:
    model = make_mind(brain)
    whole = model(tokens)
    first = model(tokens[:, :7])
    before = first.past_key_values.brain.cloned()
    rest = model(tokens[:, 7:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole.logits)
    assert rest.past_key_values.length == tokens.shape[1]
    assert rest.past_key_values.nbytes > 0
    for name, population in before.populations.items():
        kept = first.past_key_values.brain.populations[name]
        assert all(torch.equal(one, other) for one, other in zip(population.tensors, kept.tensors, strict=True))
    torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, whole.logits[:, -2:])
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 11
    assert torch.equal(model(changed).logits[:, :9], whole.logits[:, :9]), "what comes later changes nothing before"


@compiled
@pytest.mark.parametrize("brain", ["one", "two"])
@pytest.mark.parametrize("steps", [1, 3])
@torch.no_grad()
def test_events_and_products_fire_alike(
    make_mind: MakeMind, tokens: Tensor, brain: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_mind(brain, steps_per_token=steps)
    by_events = model(tokens, output_counts=True)
    monkeypatch.setattr(neurogen, "takes_events", lambda _: False)
    by_products = model(tokens, output_counts=True)
    assert 0.02 < float(by_events.counts.mean()) / steps < 0.6
    assert torch.equal(by_events.counts, by_products.counts)
    torch.testing.assert_close(by_events.logits, by_products.logits)
    after = [one.past_key_values.brain for one in (by_events, by_products)]
    for name, population in after[0].populations.items():
        for one, other in zip(population.tensors, after[1].populations[name].tensors, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ranks", [{"rank": 5, "rank_in": 3}, {"rank": None}])
@torch.no_grad()
def test_delay_lines_bring_the_last_tokens(make_mind: MakeMind, tokens: Tensor, ranks: dict[str, Any]) -> None:
    model = make_mind("two", lines=3, into=["mouth", "ear"], **ranks)
    codes, spread = model.enter.codes, model.enter.spread
    if spread is None:
        weights = codes.unflatten(1, (3, -1))
    else:
        weights = torch.einsum("vr,drn->vdn", codes, spread.unflatten(0, (3, -1)))
    for row, ids in enumerate(tokens.tolist()):
        for at in range(len(ids)):
            heard = sum(weights[ids[at - late], late] for late in range(3) if at >= late)
            torch.testing.assert_close(model.currents(tokens)[at, row], heard)  # thresholds are 1 mV


@compiled
@pytest.mark.parametrize("steps", [1, 2])
@torch.no_grad()
def test_what_is_on_the_lines_is_carried(
    make_mind: MakeMind, tokens: Tensor, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_mind("two", lines=4, vocab_size=12, steps_per_token=steps)
    whole = model(tokens, output_counts=True)
    assert not torch.equal(
        whole.counts, make_mind("two", vocab_size=12, steps_per_token=steps)(tokens, output_counts=True).counts
    )
    state, said = None, []
    for one in tokens.split(1, 1):
        out = model(one, past_key_values=state)
        state, said = out.past_key_values, [*said, out.logits]
    torch.testing.assert_close(torch.cat(said, 1), whole.logits)
    assert torch.equal(state.past.T, tokens[:, -3:])
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 11}
    mask = torch.ones_like(tokens)
    mask[1, :5] = 0
    padded = model.generate(tokens, attention_mask=mask, **how)
    assert torch.equal(padded[1, -8:], model.generate(tokens[1:2, 5:], **how)[0, -8:]), "padding is on no line"
    beams = model.generate(tokens, num_beams=3, **how)
    assert torch.equal(beams, model.generate(tokens, num_beams=3, use_cache=False, **how))
    monkeypatch.setattr(neurogen, "takes_events", lambda _: False)
    assert torch.equal(model(tokens, output_counts=True).counts, whole.counts)


@torch.no_grad()
def test_together_the_lines_begin_as_loud_as_one(make_mind: MakeMind) -> None:
    for rank in (None, 64):
        model = make_mind("one", vocab_size=400, lines=5, line_fading=0.5, rank=rank)
        loudness = [
            model.currents(torch.randint(0, 400, (40, 9))).square().mean().sqrt()
            for model in (model, make_mind("one", vocab_size=400, rank=rank))
        ]
        assert float(loudness[0]) == pytest.approx(float(loudness[1]), rel=0.15)
        parts = (model.enter.codes if model.enter.spread is None else model.enter.spread.T).unflatten(1, (5, -1))
        heard = parts.square().mean((0, 2)).sqrt()
        torch.testing.assert_close(heard[1:] / heard[:-1], torch.full((4,), 0.5), rtol=0.1, atol=0)


def test_saved_and_loaded_it_is_the_same(make_mind: MakeMind, tokens: Tensor, tmp_path: Path) -> None:
    model = make_mind("two", plastic=True)
    with torch.no_grad():
        for one in model.wires:
            one.weight.mul_(1.5)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is NeuroGenForCausalLM
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, NeuroGenConfig)
    assert config.brain == model.config.brain
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert {name: tensor.dtype for name, tensor in again.state_dict().items()} == {
        name: tensor.dtype for name, tensor in model.state_dict().items()
    }


def test_generate_carries_its_state(make_mind: MakeMind, tokens: Tensor) -> None:
    model = make_mind("two", vocab_size=12)
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 11}  # generate() takes it for padding anywhere
    said = model.generate(tokens, **how)
    assert torch.equal(said, model.generate(tokens, use_cache=False, **how))
    mask = torch.ones_like(tokens)
    mask[1, :5] = 0
    padded = model.generate(tokens, attention_mask=mask, **how)
    assert torch.equal(padded[0], said[0])
    assert torch.equal(padded[1, -8:], model.generate(tokens[1:2, 5:], **how)[0, -8:]), "padding is not there"
    beams = model.generate(tokens, num_beams=3, **how)
    assert torch.equal(beams, model.generate(tokens, num_beams=3, use_cache=False, **how))


def test_the_loss_is_that_of_the_next_token(make_mind: MakeMind, tokens: Tensor) -> None:
    model = make_mind()
    out = model(tokens, labels=tokens)
    chances = out.logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])
    torch.testing.assert_close(out.loss, -chances.mean())
    out.loss.backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in model.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"into": ["cortx"]}, "cortex"),
        ({"out": []}, "name one region or more"),
        ({"rank": 0}, "rank is 0"),
        ({"lines": 0}, "lines is 0"),
        ({"line_fading": 0.0}, "line_fading is 0"),
        ({"trace_tokens": [0.0]}, "trace_tokens"),
        ({"hidden_size": 64}, "hidden_size"),
        ({"brain": {"populations": {"a": {"size": 2, "neuron": {"kind": "izhikevich"}}}}}, "lif or lifa"),
        ({"brain": "configs/neurogen.yaml"}, "expected populations and projections"),
    ],
)
def test_what_cannot_be_is_one_line(make_mind: MakeMind, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        make_mind(**changes)(torch.zeros(1, 2, dtype=torch.long))
    assert "\n" not in str(caught.value)
