"""Local rules against what theory says of them."""

from __future__ import annotations

import math

import pytest
import torch

from pragnosia.learning.eprop import Cell, State, Weights, eprop, surrogate
from pragnosia.learning.feedback_alignment import angle
from pragnosia.learning.hebbian import hebb, oja, sanger
from pragnosia.learning.stdp import Traces, Window, eligible, rewarded, stdp

CELL = Cell(tau_v=5.0, tau_a=12.0, tau_out=3.0, beta=0.4)


def layer(neurons: int = 8, inputs: int = 5, vocabulary: int = 4) -> Weights:
    chance = torch.Generator().manual_seed(1)
    shapes = ((neurons, inputs, 1.2), (neurons, neurons, 0.6), (vocabulary, neurons, 0.5))
    return Weights(*(torch.randn(a, b, generator=chance, dtype=torch.float64) * scale for a, b, scale in shapes))


def task(steps: int = 25, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(2)
    x = (torch.rand(steps, batch, 5, generator=chance) < 0.4).double()
    return x, torch.randint(0, 4, (steps, batch), generator=chance)


@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_eprop_is_the_gradient_where_recurrent_spikes_pass_none(beta: float) -> None:
    weights, cell = layer(), Cell(tau_v=5.0, tau_a=12.0, tau_out=3.0, beta=beta)
    loss, exact, state = surrogate(weights, *task(), cell, through_spikes=False)
    ours, wish, (after, _) = eprop(weights, *task(), cell)
    assert ours == pytest.approx(loss)
    assert float(state.z.sum()) > 0
    for one, other in zip(wish, exact, strict=True):
        assert other.abs().max() > 1e-4
        torch.testing.assert_close(one, other)
    for one, other in zip(after, state, strict=True):
        torch.testing.assert_close(one, other)


def test_eprop_in_two_parts_is_eprop_at_once() -> None:
    weights, (x, targets) = layer(), task()
    _, whole, _ = eprop(weights, x, targets, CELL)
    _, first, carried = eprop(weights, x[:10], targets[:10], CELL)
    _, rest, _ = eprop(weights, x[10:], targets[10:], CELL, carried)
    for one, a, b in zip(whole, first, rest, strict=True):
        torch.testing.assert_close(one, 0.4 * a + 0.6 * b)


def test_approximations_point_the_gradients_way() -> None:
    weights, (x, targets) = layer(), task()
    _, exact, _ = surrogate(weights, x, targets, CELL)
    _, symmetric, _ = eprop(weights, x, targets, CELL)
    _, factorised, carried = eprop(weights, x, targets, CELL, factorised=True)
    assert angle(symmetric, exact) < 60
    assert angle(factorised, exact) < 80
    assert carried[1].slow.numel() == 0, "nothing is kept per synapse"
    feedback = torch.randn(4, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    _, told, _ = eprop(weights, x, targets, CELL, feedback=feedback)
    torch.testing.assert_close(told.read, symmetric.read)
    assert not torch.allclose(told.recur, symmetric.recur)


def test_truncated_gradients_go_on_from_a_state() -> None:
    weights, (x, targets) = layer(), task()
    _, _, whole = surrogate(weights, x, targets, CELL)
    _, _, part = surrogate(weights, x[:9], targets[:9], CELL)
    _, _, rest = surrogate(weights, x[9:], targets[9:], CELL, part)
    for one, other in zip(whole, rest, strict=True):
        torch.testing.assert_close(one, other)
    assert State.silent(weights, 2).y.shape == (2, 4)


@pytest.mark.parametrize("rule", ["surrogate", "eprop", "random", "factorised"])
def test_a_layer_learns_what_comes_next(rule: str) -> None:
    """Four inputs in a circle: the next is fully determined."""
    weights = layer(neurons=16, inputs=5)
    feedback = torch.randn(4, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    at = (torch.arange(13)[:, None] + torch.arange(4)) % 4
    x, targets = torch.nn.functional.one_hot(at[:-1], 5).double(), at[1:]
    optimiser = torch.optim.Adam(list(weights), 0.03)
    losses = []
    for _ in range(150):
        if rule == "surrogate":
            loss, wish, _ = surrogate(weights, x, targets, CELL)
        else:
            sent = feedback if rule == "random" else None
            loss, wish, _ = eprop(weights, x, targets, CELL, feedback=sent, factorised=rule == "factorised")
        for weight, grad in zip(weights, wish, strict=True):
            weight.grad = grad
        optimiser.step()
        losses.append(loss)
        if loss < 0.5 * losses[0]:
            break
    assert losses[-1] < 0.5 * losses[0]


def test_the_window_of_a_pair_is_its_closed_form() -> None:
    window = Window(plus=0.02, minus=0.03, tau_plus_ms=15.0, tau_minus_ms=30.0)
    for late in (-40, -5, 0, 3, 25):
        pre, post = torch.zeros(60, 1, 1), torch.zeros(60, 1, 1)
        pre[max(0, -late)], post[max(0, late)] = 1, 1
        traces, total = Traces.silent(pre[0], post[0]), torch.zeros(1, 1)
        for before, behind in zip(pre, post, strict=True):
            change, traces = stdp(before, behind, traces, window)
            total += change
        expected = 0.0
        if late:
            expected = 0.02 * math.exp(-late / 15) if late > 0 else -0.03 * math.exp(late / 30)
        assert float(total) == pytest.approx(expected, rel=1e-4, abs=1e-9), late


def test_a_triplet_counts_the_spike_before() -> None:
    """post, pre, post: the second post finds the first one's slow trace (Pfister and Gerstner, eq. 3)."""
    window = Window(plus=0.0, minus=0.0, plus3=0.01, tau_plus_ms=17.0, tau_y_ms=114.0)
    spikes = torch.zeros(31, 2, 1, 1)
    spikes[0, 1] = spikes[10, 0] = spikes[30, 1] = 1
    traces, total = Traces.silent(spikes[0, 0], spikes[0, 1]), torch.zeros(1, 1)
    for pre, post in spikes:
        change, traces = stdp(pre, post, traces, window)
        total += change
    assert float(total) == pytest.approx(0.01 * math.exp(-20 / 17) * math.exp(-30 / 114), rel=1e-4)


def test_a_reward_that_comes_late_finds_what_it_is_for() -> None:
    eligibility = torch.zeros(1, 2)
    for t in range(10):
        change = torch.tensor([[1.0, 0.0]]) if t == 0 else torch.zeros(1, 2)
        eligibility = eligible(change, eligibility, tau_ms=20.0)
    change, expected = rewarded(eligibility, 1.0, 0.25, rate=0.1)
    torch.testing.assert_close(change, torch.tensor([[0.1 * 0.75 * math.exp(-9 / 20), 0.0]]))
    assert expected == pytest.approx(0.2875)


def test_oja_and_sanger_find_principal_components() -> None:
    chance = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=chance) @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5, 0.3, 0.1]))
    x = torch.randn(400, 6, generator=chance) @ mixing.T / 6
    components = torch.linalg.svd(x, full_matrices=False)[2]
    one, several = torch.randn(1, 6, generator=chance) / 3, torch.randn(3, 6, generator=chance) / 3
    for _ in range(600):
        one = one + oja(x, x @ one.T, one, rate=0.1)
        several = several + sanger(x, x @ several.T, several, rate=0.1)
    assert abs(float(one[0] @ components[0])) > 0.999
    assert float(one.norm()) == pytest.approx(1, abs=1e-2)
    assert ((several @ components[:3].T).abs().diagonal() > 0.98).all()
    assert hebb(x, x @ one.T, rate=0.1).norm() > 0
