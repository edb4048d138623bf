"""Learned gates: what they are, how they are pressed, and what follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from organs_at_work import SPARSE, at_work, words

from pragnosia.errors import ConfigError
from pragnosia.plasticity.depth import deepen
from pragnosia.plasticity.gates import Gates, GatesConfig


def loudness(model: Any, layer: int = 0) -> torch.Tensor:
    return torch.stack([unit.flatten().norm() for unit in model.model.layers[layer].feed_forward.bank.down.detach()])


@pytest.mark.parametrize("organs", ["sigmoid", "softmax", "threshold", "columns"])
def test_the_gradient_of_a_gate_is_that_of_the_weights_along_them(organs: str) -> None:
    """Beside a model whose gates are parameters: down = g c d, by autograd."""
    model: Any = at_work(SPARSE[organs])
    bank = model.model.layers[0].feed_forward.bank
    loud = loudness(model)
    full = 1.5 * loud.mean()
    model(words(4), labels=words(4)).loss.backward()
    ours = full * (bank.down.grad * bank.down / loud.view(-1, 1, 1)).sum((1, 2)).detach()
    said = (bank.down / loud.view(-1, 1, 1)).detach()
    gates = (loud / full).requires_grad_()
    held = {name: weight.detach() for name, weight in model.named_parameters()}
    held["model.layers.0.feed_forward.bank.down"] = gates.view(-1, 1, 1) * full * said
    loss = torch.func.functional_call(model, held, (words(4),), {"labels": words(4)}).loss
    (theirs,) = torch.autograd.grad(loss, gates)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_pressing_closes_by_the_pressure_and_never_opens_beyond_full() -> None:
    model: Any = at_work(SPARSE["sigmoid"])
    gates = Gates(GatesConfig(pressure=0.01, loudness=1.25))
    before = loudness(model)
    full = 1.25 * float(before.mean())
    gates.press(model)
    assert gates.full[0] == pytest.approx(full)
    torch.testing.assert_close(loudness(model), ((before / full - 0.01).clamp(0, 1)) * full)
    bank = model.model.layers[0].feed_forward.bank
    with torch.no_grad():
        bank.down[1] *= 100
        bank.down[2] *= 1e-4
    down, bias = bank.down.detach().clone(), bank.down_bias.detach().clone()
    gates.press(model)
    assert float(loudness(model)[1]) == pytest.approx(full, rel=1e-5)
    assert not bank.down[2].any()
    assert not bank.down_bias[2].any()
    share = bank.down[1] / down[1]
    torch.testing.assert_close(share, share[0, 0].expand_as(share))
    torch.testing.assert_close(bank.down_bias[1] / bias[1], share[0, 0].expand_as(bias[1]))
    torch.testing.assert_close(gates.read(model)[0], loudness(model) / full)
    assert gates.closed(model)[0] == [2]
    assert all(units == [] for layer, units in gates.closed(model).items() if layer)


def test_gates_open_where_a_unit_earns_its_place() -> None:
    """One who is needed by the loss stays open under a pressure that closes one nobody wakes."""
    model: Any = at_work(SPARSE["sigmoid"] | {"num_hidden_layers": 1})
    thalamus = model.model.layers[0].feed_forward.thalamus
    thalamus.balance[5] = -9.0  # never wakes
    gates = Gates(GatesConfig(pressure=0.02))
    optimiser = torch.optim.Adam(model.parameters(), 3e-2)
    for _ in range(40):
        optimiser.zero_grad()
        model(words(4), labels=words(4)).loss.backward()
        optimiser.step()
        gates.press(model)
    found = gates.read(model)[0]
    assert found[5] == 0
    assert float(found[:5].min()) > 0.2
    assert 5 in gates.closed(model)[0]


def test_a_layer_is_crowded_where_most_of_its_gates_are_open() -> None:
    model: Any = at_work(SPARSE["sigmoid"])
    gates = Gates(GatesConfig(crowded=0.5))
    gates.press(model)
    assert gates.crowd(model) is None
    with torch.no_grad():
        model.model.layers[1].feed_forward.bank.down[:3] *= 50
    gates.press(model)
    crowd = gates.crowd(model)
    assert crowd is not None
    assert crowd.layer == 1
    assert crowd.unit in (0, 1, 2)
    assert crowd.reason == "gates: 50 % of layer 1 are fully open, at least 50 %"
    gates.clear()
    assert gates.crowd(model) is None


def test_a_layer_that_says_nothing_yet_is_not_pressed() -> None:
    model: Any = at_work(SPARSE["sigmoid"])
    deepen(model, 1, after=[0])
    gates = Gates(GatesConfig())
    gates.press(model)
    assert sorted(gates.full) == [0, 2, 3]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("pressure", 0.0, "between 0 and 1"),
        ("loudness", 0.5, "at least 1"),
        ("closed", 1.0, "between 0 and 1"),
        ("crowded", 1.2, "it is a share"),
    ],
)
def test_what_gates_cannot_be(key: str, value: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GatesConfig(**{key: value})
