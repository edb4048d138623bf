"""The bank's verbs: what they keep, what they say moved, and how an optimiser follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pragnosia.model.bank import NEWBORN, Bank, Moved

WIDTH, UNIT_WIDTH, UNITS = 6, 4, 5


def bank(*, bias: bool = True, activation: str = "swiglu", num_units: int = UNITS) -> Bank:
    """A bank with random weights and biases."""
    torch.manual_seed(2)
    made = Bank(num_units, WIDTH, UNIT_WIDTH, activation=activation, bias=bias)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def routed(num_units: int = UNITS, tokens: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, two different units for each, some asleep, and their strengths."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(tokens, WIDTH, generator=generator)
    units = torch.stack([torch.randperm(num_units, generator=generator)[:2] for _ in range(tokens)])
    units[::7, 1] = -1
    return x, units, torch.rand(tokens, 2, generator=generator)


def noise(name: str, rows: Tensor) -> None:
    torch.nn.init.normal_(rows)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["swiglu", "relu2", "clamped_swiglu"])
def test_the_sum_over_who_is_awake(activation: str, bias: bool) -> None:
    made = bank(bias=bias, activation=activation)
    x, units, strengths = routed()
    y = made(x, units, strengths)
    from pragnosia.kernels.activations import ACTIVATIONS

    expected = torch.zeros_like(x)
    for token in range(len(x)):
        for unit, strength in zip(units[token].tolist(), strengths[token], strict=True):
            if unit >= 0:
                hidden = made.up[unit] @ x[token]
                hidden = hidden if made.up_bias is None else hidden + made.up_bias[unit]
                told = made.down[unit] @ ACTIVATIONS[activation](hidden)
                expected[token] += strength * (told if made.down_bias is None else told + made.down_bias[unit])
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_newborns_change_nothing(bias: bool) -> None:
    made, (x, units, strengths) = bank(bias=bias), routed()
    before = made(x, units, strengths)

    def fill(name: str, rows: Tensor) -> None:
        torch.nn.init.constant_(rows, len(name))

    moved = made.add_units(3, fill)
    assert made.num_units == UNITS + 3
    assert moved.source.tolist() == [0, 1, 2, 3, 4, NEWBORN, NEWBORN, NEWBORN]
    assert torch.equal(made(x, units, strengths), before)
    assert set(moved.replaced) == {name for name, _ in made.named_parameters()}
    for name, parameter in made.named_parameters():
        assert (parameter[-3:] == len(name)).all(), "the caller's values, told by name"
        assert parameter is moved.replaced[name][1]
        assert parameter.requires_grad


def test_newborns_are_awoken_like_any_other() -> None:
    made, (x, units, strengths) = bank(), routed()
    made.add_units(1, noise)
    twin = torch.where(units == 2, UNITS, units)
    assert not torch.allclose(made(x, twin, strengths), made(x, units, strengths))


@pytest.mark.parametrize("unit", range(UNITS))
def test_twins_share_what_one_did(unit: int) -> None:
    made, (x, units, strengths) = bank(), routed()
    before = made(x, units, strengths)
    moved = made.split_unit(unit)
    assert moved.source.tolist() == [0, 1, 2, 3, 4, unit]
    assert torch.equal(made(x, units, strengths), before), "all on the elder"
    part = torch.rand(30, 1)
    both = torch.cat((units, torch.where(units == unit, UNITS, -1)), -1)
    shared = torch.cat((torch.where(units == unit, strengths * part, strengths), strengths * (1 - part)), -1)
    torch.testing.assert_close(made(x, both, shared), before, rtol=1e-4, atol=1e-5)


@given(st.sets(st.integers(0, UNITS - 1), max_size=UNITS - 1))
@settings(max_examples=20)
def test_who_is_removed_is_missed_only_by_those_who_woke_it(gone: set[int]) -> None:
    made, (x, units, strengths) = bank(), routed()
    before = made(x, units, strengths)
    moved = made.remove_units(gone)
    kept = [unit for unit in range(UNITS) if unit not in gone]
    assert moved.source.tolist() == kept
    assert made.num_units == made.down.shape[0] == len(kept), "memory shrinks"
    place = torch.full((UNITS + 1,), -1)
    place[kept] = torch.arange(len(kept))
    untouched = ~torch.isin(units, torch.tensor(sorted(gone))).any(-1)
    after = made(x, place[units], strengths)
    torch.testing.assert_close(after[untouched], before[untouched], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unit", [-1, UNITS, 99])
def test_units_that_are_not_there(unit: int) -> None:
    made = bank()
    for verb in (made.split_unit, lambda which: made.remove_units([0, which])):
        with pytest.raises(ValueError, match=f"there is no unit {unit}; the bank holds units 0 to 4"):
            verb(unit)
    assert made.num_units == UNITS


@pytest.mark.parametrize("count", [0, -2])
def test_adding_nobody(count: int) -> None:
    with pytest.raises(ValueError, match=f"cannot add {count} units"):
        bank().add_units(count, noise)


def test_removing_everybody() -> None:
    with pytest.raises(ValueError, match="cannot remove all 5 units"):
        bank().remove_units(range(UNITS))


def test_a_frozen_bank_stays_frozen() -> None:
    made = bank().requires_grad_(False)
    made.add_units(1, noise)
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_anything_along_the_units_can_follow() -> None:
    moved = Moved(torch.tensor([4, 0, NEWBORN, 2]), {})
    rows = torch.arange(10.0).view(5, 2)
    assert moved.follow(rows, newborn=-7.0).tolist() == [[8, 9], [0, 1], [-7, -7], [4, 5]]
    assert rows.tolist() == torch.arange(10.0).view(5, 2).tolist(), "the old rows stay as they were"


# -- optimisers

OPTIMISERS: dict[str, Any] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1),
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=0.05, amsgrad=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
}


def step(made: Bank, optimiser: torch.optim.Optimizer, x: Tensor, units: Tensor, strengths: Tensor) -> None:
    optimiser.zero_grad()
    (made(x, units, strengths) - x.flip(-1)).square().mean().backward()
    optimiser.step()


def test_moments_follow_their_rows() -> None:
    made, given_ = bank(), routed()
    optimiser = torch.optim.AdamW(made.parameters(), lr=0.05)
    for _ in range(3):
        step(made, optimiser, *given_)
    before = {name: optimiser.state[parameter]["exp_avg"].clone() for name, parameter in made.named_parameters()}
    old = set(made.parameters())
    made.remove_units([1]).carry(optimiser)
    made.add_units(2, noise).carry(optimiser)
    held = {parameter for group in optimiser.param_groups for parameter in group["params"]}
    assert held == set(made.parameters())
    assert set(optimiser.state) == held, "nothing is kept of what is gone"
    assert not held & old
    for name, parameter in made.named_parameters():
        state = optimiser.state[parameter]
        assert torch.equal(state["exp_avg"][:4], before[name][[0, 2, 3, 4]])
        assert not state["exp_avg"][4:].any()
        assert not state["exp_avg_sq"][4:].any()
        assert float(state["step"]) == 3


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_training_goes_on_as_if_the_others_had_never_been(optimiser: str) -> None:
    """A bank of 5 that loses unit 1 and gains one nobody wakes, and a bank that held the other 4 from the start."""
    whole, (x, units, strengths) = bank(), routed()
    units = torch.where(units == 1, -1, units)
    few = bank()
    few.remove_units([1])
    place = torch.tensor([0, -1, 1, 2, 3, -1])
    whole_optimiser, few_optimiser = (OPTIMISERS[optimiser](made.parameters()) for made in (whole, few))
    for _ in range(4):
        step(whole, whole_optimiser, x, units, strengths)
        step(few, few_optimiser, x, place[units], strengths)
    whole.remove_units([1]).carry(whole_optimiser)
    whole.add_units(1, noise).carry(whole_optimiser)
    for _ in range(4):
        step(whole, whole_optimiser, x, place[units], strengths)
        step(few, few_optimiser, x, place[units], strengths)
    for (name, mine), (_, theirs) in zip(whole.named_parameters(), few.named_parameters(), strict=True):
        torch.testing.assert_close(mine[:4], theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_other_parameters_keep_their_place_and_state() -> None:
    made, other = bank(), torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([{"params": [other], "lr": 0.3}, {"params": list(made.parameters()), "lr": 0.1}])
    (made(*routed()).sum() + other.sum()).backward()
    optimiser.step()
    kept = optimiser.state[other]
    made.split_unit(0).carry(optimiser)
    assert optimiser.param_groups[0]["params"][0] is other
    assert optimiser.param_groups[0]["lr"] == 0.3
    assert optimiser.param_groups[1]["lr"] == 0.1
    assert [id(parameter) for parameter in optimiser.param_groups[1]["params"]] == [id(p) for p in made.parameters()]
    assert optimiser.state[other] is kept


def test_carrying_before_the_first_step() -> None:
    made, given_ = bank(), routed()
    optimiser = torch.optim.AdamW(made.parameters(), lr=0.05)
    made.add_units(1, noise).carry(optimiser)
    before = made.up.detach().clone()
    step(made, optimiser, *given_)
    assert not torch.equal(made.up, before)
