"""The routers: who wakes, how strongly, how loads even out, and what is reported."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pragnosia.model.organs import ThalamusConfig
from pragnosia.model.parts import THALAMI, part
from pragnosia.model.thalamus import ASLEEP, Routing, Thalamus, report, unit_load

TOP_K = ("softmax", "sigmoid")


def router(kind: str = "softmax", width: int = 12, num_units: int = 8, **organ: Any) -> Thalamus:
    """A router with random weights."""
    torch.manual_seed(1)
    made: Thalamus = part(THALAMI, kind)(width, num_units, ThalamusConfig(kind=kind, **organ))
    torch.nn.init.normal_(made.weight, std=0.5)
    if made.bias is not None:
        torch.nn.init.normal_(made.bias)
    return made


def awake(routing: Routing) -> Tensor:
    """How many units each token woke."""
    return (routing.units != ASLEEP).sum(-1)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("kind", TOP_K)
@pytest.mark.parametrize("organ", [{}, {"bias": True}, {"scale": 2.5}])
def test_the_strongest_wake(kind: str, renormalise: bool, organ: dict[str, Any]) -> None:
    thalamus = router(kind, num_awake=3, renormalise=renormalise, **organ)
    x = torch.randn(20, 12)
    routing = thalamus(x, 1.0)
    logits = x @ thalamus.weight.T + (0.0 if thalamus.bias is None else thalamus.bias)
    scores = logits.softmax(-1) if kind == "softmax" else 1 / (1 + torch.exp(-logits))
    torch.testing.assert_close(routing.scores, scores)
    best = scores.sort(-1, descending=True)
    assert routing.units.sort(-1).values.equal(best.indices[:, :3].sort(-1).values)
    strengths = best.values[:, :3] / (best.values[:, :3].sum(-1, keepdim=True) if renormalise else 1.0)
    torch.testing.assert_close(routing.strengths, strengths * organ.get("scale", 1.0))


def test_strengths_carry_the_gradient_to_the_weights() -> None:
    for kind in THALAMI:
        thalamus = router(kind)
        routing = thalamus(torch.randn(20, 12), 1.0)
        (routing.strengths * torch.randn_like(routing.strengths)).sum().backward()
        assert thalamus.weight.grad is not None
        assert thalamus.weight.grad.any(), kind


def test_scores_stay_precise_under_autocast() -> None:
    thalamus, x = router("sigmoid"), torch.randn(50, 12)
    plain = thalamus(x, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(thalamus(x, 1.0).scores, plain.scores)


@pytest.mark.parametrize(("energy", "count"), [(1.0, 4), (0.75, 3), (0.5, 2), (0.25, 1), (0.01, 1)])
@pytest.mark.parametrize("kind", TOP_K)
def test_energy_scales_how_many_wake(kind: str, energy: float, count: int) -> None:
    thalamus, x = router(kind, num_awake=4), torch.randn(30, 12)
    full, less = thalamus(x, 1.0), thalamus(x, energy)
    assert (awake(less) == count).all()
    assert less.units.shape == (30, count), "a slot that is not there costs nothing"
    assert torch.equal(less.units, full.units[:, :count]), "the best of those that woke"
    torch.testing.assert_close(less.strengths.sum(-1), torch.ones(30))


# -- loss-free balance


def test_balance_falls_where_too_many_wake() -> None:
    thalamus: Any = router("sigmoid", balance_rate=0.01)
    units = torch.tensor([[0, 1], [0, 1], [0, 2], [0, 3]])
    thalamus.rebalance(Routing(units, torch.ones(4, 2), torch.rand(4, 8)))
    load = torch.tensor([4.0, 2, 1, 1, 0, 0, 0, 0])
    torch.testing.assert_close(thalamus.balance, 0.01 * torch.sign(load.mean() - load))
    assert thalamus.balance[0] < 0 < thalamus.balance[7]


def test_loads_even_out() -> None:
    thalamus: Any = router("sigmoid", balance_rate=0.02, num_awake=2)
    with torch.no_grad():
        thalamus.weight[:2] += 0.5  # two favourites, on inputs of positive mean
    x = torch.randn(400, 12) * 0.5 + 1.0
    before = report(thalamus(x, 1.0))
    for _ in range(300):
        thalamus.rebalance(thalamus(x, 1.0))
    after = report(thalamus(x, 1.0))
    assert before.num_dead > 0
    assert before.entropy < 0.7
    assert after.num_dead == 0
    assert after.entropy > 0.98
    assert thalamus.balance[:2].mean() < thalamus.balance[2:].mean()


def test_balance_chooses_but_does_not_weigh() -> None:
    thalamus: Any = router("sigmoid", balance_rate=0.1, renormalise=False)
    x = torch.randn(30, 12)
    thalamus.balance[5] = 10.0
    routing = thalamus(x, 1.0)
    assert (routing.units == 5).any(-1).all()
    torch.testing.assert_close(routing.strengths, routing.scores.gather(-1, routing.units))


@pytest.mark.parametrize("kind", THALAMI)
def test_forward_never_learns(kind: str) -> None:
    thalamus = router(kind, balance_rate=0.1).train()
    before = {name: tensor.clone() for name, tensor in thalamus.state_dict().items()}
    thalamus(torch.randn(30, 12), 1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in thalamus.state_dict().items())


@pytest.mark.parametrize("kind", TOP_K)
def test_no_balance_unless_asked(kind: str) -> None:
    thalamus = router(kind)
    thalamus.rebalance(thalamus(torch.randn(30, 12), 1.0))
    assert set(thalamus.state_dict()) == {"weight"}


# -- the energy gate


@pytest.mark.parametrize(("num_units", "num_awake"), [(16, 2), (8, 4)])
def test_the_threshold_wakes_its_share(num_units: int, num_awake: int) -> None:
    thalamus = router("threshold", 32, num_units, num_awake=num_awake, max_awake=num_units)
    for _ in range(40):
        thalamus.rebalance(thalamus(torch.randn(500, 32), 1.0))
    unseen = torch.randn(4000, 32)
    for energy in (1.0, 0.5, 0.25):
        routing = thalamus(unseen, energy)
        share = awake(routing).float().mean() / num_units
        assert float(share) == pytest.approx(energy * num_awake / num_units, rel=0.12), energy
        each = unit_load(routing) / 4000
        torch.testing.assert_close(each, torch.full_like(each, energy * num_awake / num_units), rtol=0.4, atol=0.01)
    assert awake(routing).unique().numel() > 2, "some tokens wake more than others"


def test_more_energy_never_wakes_fewer() -> None:
    thalamus = router("threshold", num_units=16, num_awake=3, max_awake=16)
    x = torch.randn(300, 12)
    for _ in range(5):
        thalamus.rebalance(thalamus(x, 1.0))
    counts = [awake(thalamus(x, step / 40)) for step in range(1, 41)]
    assert all((more >= fewer).all() for fewer, more in pairwise(counts))
    assert counts[-1].float().mean() > 4 * counts[0].float().mean()


def test_a_cap_on_who_wakes_at_once() -> None:
    thalamus = router("threshold", num_units=16, num_awake=3)
    x = torch.randn(300, 12)
    assert int(awake(thalamus(x, 1.0)).max()) == 6, "before anything was observed nearly all pass: the cap holds"
    capped = router("threshold", num_units=16, num_awake=3, max_awake=4)
    assert capped(x, 1.0).units.shape == (300, 4)


@pytest.mark.parametrize("kind", THALAMI)
def test_rounded_weights_rebalance_too(kind: str) -> None:
    thalamus = router(kind, balance_rate=1e-3).to(torch.bfloat16)
    x = torch.randn(200, 12).bfloat16()
    before = [buffer.clone() for buffer in thalamus.buffers()]
    thalamus.rebalance(thalamus(x, 1.0))
    assert any(not torch.equal(old, new) for old, new in zip(before, thalamus.buffers(), strict=True))


# -- steering


@pytest.mark.parametrize("kind", THALAMI)
def test_a_silenced_unit_never_wakes(kind: str) -> None:
    thalamus = router(kind, num_awake=3)
    thalamus.steering[[1, 4, 6]] = float("-inf")
    routing = thalamus(torch.randn(200, 12), 1.0)
    assert not torch.isin(routing.units, torch.tensor([1, 4, 6])).any()
    assert routing.strengths.isfinite().all()
    assert awake(routing).float().mean() > 1


@pytest.mark.parametrize("kind", THALAMI)
def test_silence_where_too_few_are_left(kind: str) -> None:
    thalamus = router(kind, num_awake=3)
    thalamus.steering[2:] = float("-inf")
    routing = thalamus(torch.randn(50, 12), 1.0)
    assert set(routing.units.unique().tolist()) <= {ASLEEP, 0, 1}
    assert not routing.strengths[routing.units == ASLEEP].any()
    if kind in TOP_K:
        torch.testing.assert_close(routing.strengths.sum(-1), torch.ones(50))


@pytest.mark.parametrize("kind", THALAMI)
def test_silence_of_all(kind: str) -> None:
    thalamus = router(kind)
    thalamus.steering.fill_(float("-inf"))
    routing = thalamus(torch.randn(50, 12), 1.0)
    assert (routing.units == ASLEEP).all()
    assert not routing.strengths.any(), "nothing, and not 'not a number'"


@pytest.mark.parametrize("kind", THALAMI)
def test_a_strong_push_captures_all(kind: str) -> None:
    thalamus = router(kind, num_awake=2)
    thalamus.steering[3:5] = 100.0
    routing = thalamus(torch.randn(50, 12), 1.0)
    assert (routing.units[:, :2].sort(-1).values == torch.tensor([3, 4])).all()


# -- the report


@given(st.integers(2, 40), st.integers(1, 30))
def test_an_even_load_has_entropy_one(num_units: int, rounds: int) -> None:
    units = torch.arange(num_units).repeat(rounds)[:, None]
    told = report(Routing(units, torch.ones_like(units).float(), torch.rand(len(units), num_units)))
    torch.testing.assert_close(told.load, torch.full((num_units,), 1 / num_units))
    assert told.entropy == pytest.approx(1.0, abs=1e-5)
    assert told.num_dead == 0
    assert told.awake_per_token == 1.0


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 4))
def test_any_load_adds_up(seed: int, num_units: int, slots: int) -> None:
    units = torch.randint(-1, num_units, (25, slots), generator=torch.Generator().manual_seed(seed))
    told = report(Routing(units, torch.ones(25, slots), torch.rand(25, num_units)))
    woken = units[units >= 0]
    assert told.num_dead == num_units - woken.unique().numel()
    assert told.awake_per_token == pytest.approx(woken.numel() / 25)
    if woken.numel():
        assert float(told.load.sum()) == pytest.approx(1.0, abs=1e-5)
        assert told.load[int(woken[0])] > 0
    assert 0 <= told.entropy <= 1 + 1e-6


def test_one_unit_for_all_has_entropy_zero() -> None:
    told = report(Routing(torch.zeros(9, 1, dtype=torch.long), torch.ones(9, 1), torch.rand(9, 5)))
    assert told.entropy == 0
    assert told.num_dead == 4
    assert told.load.tolist() == [1, 0, 0, 0, 0]


def test_a_sleeping_layer_is_reported() -> None:
    told = report(Routing(torch.full((9, 2), ASLEEP), torch.zeros(9, 2), torch.rand(9, 5)))
    assert (told.num_dead, told.awake_per_token, told.entropy) == (5, 0.0, 0.0)
    assert not told.load.any()
