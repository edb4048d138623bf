"""The stack as one thing: its loss, its energy, its initialisers, its compiled decode step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import StaticCache

from pragnosia.errors import ConfigError
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.parts import THALAMI
from pragnosia.model.setting import Setting

Make = Callable[..., PragnosiaForCausalLM]


# -- loss and logits


def test_the_loss_is_that_of_the_next_token(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model()
    labels = tokens.clone()
    labels[0, :4] = -100
    output = model(tokens, labels=labels)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(output.loss, expected)


def test_training_wants_only_the_loss(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model()
    told = model(tokens, labels=tokens).loss
    model.train()
    output = model(tokens, labels=tokens)
    assert output.logits is None
    assert output.past_key_values is None
    torch.testing.assert_close(output.loss, told)
    assert model(tokens).logits is not None, "without labels there is nothing else to want"


@pytest.mark.parametrize(("kept", "expected"), [(0, slice(None)), (1, slice(-1, None)), (3, slice(-3, None))])
def test_only_the_logits_asked_for(kept: int, expected: slice, tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model()
    torch.testing.assert_close(model(tokens, logits_to_keep=kept).logits, model(tokens).logits[:, expected])


def test_logits_at_places(tiny_model: Make, tokens: Tensor) -> None:
    model, places = tiny_model(), torch.tensor([2, 7])
    torch.testing.assert_close(model(tokens, logits_to_keep=places).logits, model(tokens).logits[:, places])


def test_embeddings_instead_of_tokens(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model()
    embedded = model.get_input_embeddings()(tokens)
    assert torch.equal(model(inputs_embeds=embedded).logits, model(tokens).logits)
    for wrong in ({}, {"input_ids": tokens, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model(**wrong)


def test_hidden_states_from_the_embedding_to_the_norm(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model()
    states = model(tokens, output_hidden_states=True).hidden_states
    assert torch.equal(states[0], model.model.embed_tokens(tokens))
    assert torch.equal(states[-1], model.model(tokens).last_hidden_state)
    torch.testing.assert_close(model.lm_head(states[-1]), model(tokens).logits)
    assert model(tokens).hidden_states is None


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_one(tied: bool, tiny_model: Make) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


# -- energy and routers


def test_energy_is_not_the_models_to_choose(tiny_model: Make, tokens: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"a model takes setting=Setting"):
        tiny_model()(tokens, energy=0.5)


@pytest.mark.parametrize("kind", THALAMI)
def test_less_energy_wakes_fewer(kind: str, tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model(experts={"thalamus": {"kind": kind, "num_awake": 4}})
    for _ in range(3):
        model.rebalance(model(tokens).routings)

    def awake(share: float) -> float:
        return float(
            sum((routing.units >= 0).sum() for routing in model(tokens, setting=Setting(awake=share)).routings)
        )

    assert awake(1.0) > awake(0.5) > awake(0.25) > 0


def test_rebalance_reaches_every_router(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model(
        num_hidden_layers=3,
        feed_forwards=["experts", "dense", "experts"],
        feed_forward={"width": 8},
        experts={"thalamus": {"balance_rate": 0.1}},
    )
    model.rebalance(model(tokens).routings)
    for experts in model.experts():
        balance: Any = experts.thalamus.balance
        assert balance.any()


# -- initialisers


def test_every_initialiser(tiny_config: Callable[..., Any]) -> None:
    config = tiny_config(
        hidden_size=128,
        num_hidden_layers=4,
        initializer_range=0.02,
        attention={"num_heads": 8, "head_dim": 16, "bias": True, "output_bias": True, "sinks": True, "qk_norm": "head"},
        experts={"unit_width": 64, "bias": True, "num_shared": 1, "thalamus": {"kind": "threshold", "bias": True}},
    )
    model = PragnosiaForCausalLM(config)
    writer = 0.02 / math.sqrt(2 * 4)
    for name, tensor in model.state_dict().items():
        last = name.rsplit(".", 1)[-1]
        if "norm" in name:
            assert (tensor == 1).all(), name
        elif last == "thresholds":
            assert (tensor == 0.5).all(), name
        elif last in ("bias", "up_bias", "down_bias", "sinks", "num_observed"):
            assert not tensor.any(), name
        else:
            std = writer if ".down" in name or "o_proj" in name else 0.02
            assert float(tensor.std()) == pytest.approx(std, rel=0.1), name
            assert abs(float(tensor.mean())) < std / 10, name


def test_the_same_seed_is_the_same_model(tiny_config: Callable[..., Any]) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(PragnosiaForCausalLM(tiny_config()).state_dict())
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


# -- gradient checkpointing


def test_checkpointed_gradients_are_the_same(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model(experts={"num_shared": 1}).train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        with model.model.layers[0].mixer.register_forward_pre_hook(count):
            model.zero_grad()
            model(tokens, labels=tokens).loss.backward()
        assert calls == (2 if checkpointed else 1), "the layer is run again, not remembered"
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


# -- torch.compile

COMPILED: dict[str, dict[str, Any]] = {
    **{
        f"experts by {kind}": {"experts": {"num_shared": 1, "thalamus": {"kind": kind}}}
        for kind in ("sigmoid", "threshold")
    },
    "window and sinks": {
        "experts": None,
        "feed_forward": {"width": 8},
        "attention": {"sliding_window": 4, "sinks": True},
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("cache", ["state", pytest.param("static", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dress", COMPILED)
@torch.inference_mode()
def test_the_decode_step_compiles_whole(dress: str, cache: str, tiny_model: Make, tokens: Tensor) -> None:
    model, tokens = tiny_model(**COMPILED[dress]), tokens[:1]
    whole = model(tokens, use_cache=False).logits
    past: Any = model.fresh_state(1, 16) if cache == "state" else StaticCache(config=model.config, max_cache_len=16)
    past = model(tokens[:, :6], past_key_values=past).past_key_values
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    step = torch.compile(model, fullgraph=True, backend="eager")
    for moment in range(6, 10):
        output = step(tokens[:, moment : moment + 1], past_key_values=past)
        past = output.past_key_values
        torch.testing.assert_close(output.logits[:, 0], whole[:, moment], rtol=1e-4, atol=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    assert 1 <= graphs <= 2, "a graph for the first length, one for all others"
