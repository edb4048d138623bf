"""Lobes: labelled groups of units that can be silenced and pushed, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.parts import THALAMI

Make = Callable[..., PragnosiaForCausalLM]
LANGUAGE, REASONING = range(3), range(3, 8)


@pytest.fixture(params=THALAMI)
def model(request: pytest.FixtureRequest, tiny_model: Make) -> PragnosiaForCausalLM:
    return tiny_model(experts={"thalamus": {"kind": request.param}})


def woken(model: PragnosiaForCausalLM, tokens: Tensor) -> set[int]:
    """Who woke anywhere in the stack."""
    with torch.no_grad():
        routings = model(tokens).routings
    return {unit for routing in routings for unit in routing.units.unique().tolist() if unit >= 0}


def steering(model: PragnosiaForCausalLM) -> Tensor:
    return torch.stack([experts.thalamus.steering for experts in model.experts()])


def test_a_lesioned_lobe_never_wakes(model: PragnosiaForCausalLM, tokens: Tensor) -> None:
    whole = model(tokens).logits
    with model.lesion("reasoning"):
        assert woken(model, tokens) <= set(LANGUAGE)
        lesioned = model(tokens).logits
    assert lesioned.isfinite().all()
    assert not torch.allclose(lesioned, whole, atol=1e-3)
    assert torch.equal(model(tokens).logits, whole)


def test_steering_far_enough_captures_all(model: PragnosiaForCausalLM, tokens: Tensor) -> None:
    with model.steer("language", +50.0):
        for routing in model(tokens).routings:
            assert torch.isin(routing.units[:, :2], torch.arange(3)).all()
    with model.steer("language", -50.0), torch.no_grad():
        strengths = torch.cat([r.strengths[torch.isin(r.units, torch.arange(3))] for r in model(tokens).routings])
        assert strengths.sum() < 1e-6


def test_a_little_steering_shifts_the_load(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model()

    def share(amount: float) -> float:
        with model.steer("reasoning", amount):
            units = torch.cat([routing.units for routing in model(tokens).routings])
        return float((units >= REASONING.start).float().mean())

    assert share(-3.0) < share(0.0) < share(3.0)


def test_contexts_nest(model: PragnosiaForCausalLM, tokens: Tensor) -> None:
    with model.steer("language", 1.5):
        with model.steer("language", 1.0), model.steer("reasoning", -2.0):
            assert steering(model)[:, :3].eq(2.5).all()
            assert steering(model)[:, 3:].eq(-2.0).all()
            with model.lesion("reasoning"):
                assert woken(model, tokens) <= set(LANGUAGE)
        assert steering(model)[:, :3].eq(1.5).all()
        assert not steering(model)[:, 3:].any()
    assert not steering(model).any()


def test_contexts_end_when_something_goes_wrong(model: PragnosiaForCausalLM) -> None:
    def fail() -> None:
        with model.steer("language", 3.0), model.lesion("reasoning"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not steering(model).any()


def test_an_unknown_lobe_touches_nothing(model: PragnosiaForCausalLM) -> None:
    message = "unknown lobe 'resoning'. Did you mean 'reasoning'. Available: language"
    with pytest.raises(ConfigError, match=message), model.lesion("resoning"):
        pass
    assert not steering(model).any()


@pytest.mark.parametrize("amount", [float("nan"), float("inf")])
def test_an_amount_that_is_no_amount(model: PragnosiaForCausalLM, amount: float) -> None:
    with pytest.raises(ConfigError, match=f"amount is {amount}"), model.steer("language", amount):
        pass
    assert not steering(model).any()


def test_a_dense_model_has_no_lobes(tiny_model: Make) -> None:
    model = tiny_model(experts=None, feed_forward={"width": 8})
    with pytest.raises(ConfigError, match="this model is dense"), model.steer("language", 1.0):
        pass
    assert list(model.experts()) == []


def test_steering_reaches_only_sparse_layers(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model(feed_forwards=["dense", "experts"], feed_forward={"width": 8})
    with model.lesion("language"):
        assert woken_in(model, tokens) <= set(REASONING)


def woken_in(model: PragnosiaForCausalLM, tokens: Tensor) -> set[int]:
    return {unit for routing in model(tokens).routings if routing for unit in routing.units.unique().tolist()}


def test_somebody_must_be_left_to_answer(model: PragnosiaForCausalLM) -> None:
    def silence_all() -> None:
        with model.lesion("language"), model.lesion("reasoning"):
            pass

    with pytest.raises(ConfigError, match="nobody"):
        silence_all()
    assert not steering(model).any()


@pytest.mark.parametrize("kind", THALAMI)
def test_shared_units_answer_alone(kind: str, tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model(experts={"num_shared": 1, "thalamus": {"kind": kind}})
    with model.lesion("language"), model.lesion("reasoning"):
        assert woken(model, tokens) == set()
        alone = model(tokens).logits
        assert alone.isfinite().all()
        loss: Any = model(tokens, labels=tokens).loss
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    for experts in model.experts():
        torch.nn.init.zeros_(experts.bank.down)
    torch.testing.assert_close(model(tokens).logits, alone)


def test_lobes_are_not_saved(model: PragnosiaForCausalLM) -> None:
    assert not [name for name in model.state_dict() if "steering" in name]
