"""Upcycling: a mixture says what its dense parent said, whatever the router chooses; what is drawn anew differs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.plasticity.upcycling import Upcycling, upcycle

WIDTH = 24


def dense(**changes: Any) -> PragnosiaForCausalLM:
    shape: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "max_position_embeddings": 32,
        "attention": {"num_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
        "feed_forward": {"width": WIDTH, "activation": "swiglu"},
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    model = PragnosiaForCausalLM(PragnosiaConfig(**shape | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms, too
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(1))


def said(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(tokens, use_cache=False).logits
    return logits


@pytest.mark.parametrize(("experts", "awake", "split"), [(8, 2, 1), (4, 1, 1), (8, 4, 2), (8, 4, 4), (4, 4, 4)])
@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_function_is_kept(
    experts: int, awake: int, split: int, activation: str, bias: bool, tokens: Tensor
) -> None:
    parent = dense(feed_forward={"width": WIDTH, "activation": activation, "bias": bias})
    plan = Upcycling(experts=experts, awake=awake, split=split)
    mixture = upcycle(parent, plan)
    assert plan.keeps_function
    assert mixture.config.experts.num_units == experts
    assert mixture.config.experts.unit_width == WIDTH // split
    whole = said(mixture, tokens)
    torch.testing.assert_close(whole, said(parent, tokens), atol=1e-5, rtol=1e-5)
    with torch.no_grad():  # whatever the router chooses
        for number, experts_ in enumerate(mixture.experts()):
            rows = torch.randn(experts // split, 16, generator=torch.Generator().manual_seed(number))
            experts_.thalamus.weight.copy_(rows.repeat_interleave(split, 0))
    torch.testing.assert_close(said(mixture, tokens), whole, atol=1e-5, rtol=1e-5)


def test_slices_that_sleep_are_missing(tokens: Tensor) -> None:
    """One layer by hand: the awake slices speak as they did in the parent, the others not at all."""
    parent = dense()
    plan = Upcycling(experts=4, awake=2, split=4)
    assert not plan.keeps_function
    mixture = upcycle(parent, plan)
    ours, theirs = next(mixture.experts()), parent.model.layers[0].feed_forward
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y, routing = ours(x, type("Now", (), {"setting": type("Whole", (), {"awake": 1.0})}))
        hidden = ACTIVATIONS["swiglu"](theirs.up(x[0]))
        for token, units in enumerate(routing.units):
            awake = torch.zeros(WIDTH)
            for unit, strength in zip(units, routing.strengths[token], strict=True):
                awake[unit * 6 : (unit + 1) * 6] = strength
            torch.testing.assert_close(y[0, token], theirs.down(hidden[token] * awake), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(routing.strengths.sum(-1), torch.full((5,), 2.0))


def test_what_is_drawn_anew_is_like_what_it_replaces() -> None:
    parent = dense(feed_forward={"width": 400, "activation": "swiglu"})
    mixture = upcycle(parent, Upcycling(experts=3, awake=1, drop=0.5))
    old, bank = parent.model.layers[1].feed_forward, list(mixture.experts())[1].bank
    gate, value = old.up.weight.chunk(2)
    kept = []
    for up, down in zip(bank.up, bank.down, strict=True):
        same = (up.chunk(2)[0] == gate).all(-1)
        assert same.equal((up.chunk(2)[1] == value).all(-1))  # a neuron is drawn anew in all that it is
        assert same.equal((down == old.down.weight).all(0))
        assert int(same.sum()) == 200
        fresh = up.chunk(2)[0][~same]
        torch.testing.assert_close(fresh.std(), gate[~same].std(), rtol=0.05, atol=0)
        kept.append(same)
    assert not kept[0].equal(kept[1])  # copies differ
    again = upcycle(parent, Upcycling(experts=3, awake=1, drop=0.5))
    assert all(a.equal(b) for a, b in zip(mixture.parameters(), again.parameters(), strict=True))
    other = upcycle(parent, Upcycling(experts=3, awake=1, drop=0.5, seed=1))
    assert not all(a.equal(b) for a, b in zip(mixture.parameters(), other.parameters(), strict=True))


def test_the_parent_stays_and_experts_part_ways(tokens: Tensor) -> None:
    parent = dense()
    before = said(parent, tokens)
    mixture = upcycle(parent, Upcycling(experts=4, awake=2))
    optimiser = torch.optim.AdamW(mixture.parameters(), lr=1e-2)
    mixture.train()
    for _ in range(3):
        optimiser.zero_grad()
        mixture(tokens, labels=tokens).loss.backward()
        optimiser.step()
    up = next(mixture.experts()).bank.up
    assert not torch.allclose(up[0], up[1], atol=1e-4)
    assert said(parent, tokens).equal(before)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"experts": 1}, "experts is 1; a mixture needs at least 2"),
        ({"experts": 4, "awake": 5}, "awake is 5; of 4 experts 1 to 4 can wake"),
        ({"experts": 8, "split": 3}, "split is 3, which does not divide the 8 experts"),
        ({"drop": 1.0}, "drop is 1.0; it must lie in"),
        ({"experts": 10, "split": 5}, "split is 5, which does not divide the 24 hidden neurons"),
    ],
)
def test_what_cannot_be(told: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        upcycle(dense(), Upcycling(**told))


def test_a_mixture_is_no_parent() -> None:
    sparse = upcycle(dense(), Upcycling())
    with pytest.raises(ConfigError, match="has 8 experts a layer already; only a dense one can be upcycled"):
        upcycle(sparse, Upcycling())
    lif = dense(feed_forward=None, lif={"width": 24, "num_steps": 2})
    with pytest.raises(ConfigError, match="no dense feed-forward"):
        upcycle(lif, Upcycling())
