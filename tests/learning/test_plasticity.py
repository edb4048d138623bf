"""Plasticity of a wired brain, beside all pairs and triplets of its spikes counted one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pragnosia.errors import ConfigError
from pragnosia.learning.plasticity import ELIGIBLE_MS, WINDOWS, learn, plastic
from pragnosia.spiking.configuration import read_brain
from pragnosia.spiking.modulation import Levels
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.running import run

STEPS = 50


def brain(rule: str | None, receptor: str = "pulses", weight: float = 0.5) -> Brain:
    ear_to_mouth: dict[str, Any] = {"source": "ear", "target": "mouth", "fan_in": 4, "weight": weight, "delay_ms": 2}
    config = {
        "receptor": {"kind": receptor},
        "drive": {"constant": {"mean_mv": 40, "spread_mv": 10}},
        "populations": {"ear": {"size": 9}, "mouth": {"size": 7}},
        "projections": [
            {**ear_to_mouth, "plasticity": rule},
            {"source": "mouth", "target": "ear", "fan_in": 2, "weight": -0.5, "delay_ms": [1, 3]},
        ],
    }
    return Brain.build(read_brain(config))


def counted(learned: Brain, events: torch.Tensor, rule: str, row: int = 0) -> list[list[tuple[int, float]]]:
    """Of each synapse, (step, change): from the times of spikes alone, by the sums that the traces stand for."""
    window, synapses = WINDOWS[rule], learned.projections[0].synapses
    times: dict[int, list[int]] = {}
    for of, step, neuron in events.tolist():
        if of == row:
            times.setdefault(neuron, []).append(step)

    def since(spikes: list[int], now: int, tau_ms: float) -> float:
        return sum(math.exp(-(now - one) / tau_ms) for one in spikes if one < now)

    found = []
    for source, slot in zip(synapses.sources.tolist(), synapses.slots.tolist(), strict=True):
        pre, post = times.get(source, []), times.get(learned.first["mouth"] + slot % 7, [])
        up = [
            (t, since(pre, t, window.tau_plus_ms) * (window.plus + window.plus3 * since(post, t, window.tau_y_ms)))
            for t in post
        ]
        down = [
            (t, -since(post, t, window.tau_minus_ms) * (window.minus + window.minus3 * since(pre, t, window.tau_x_ms)))
            for t in pre
        ]
        found.append(up + down)
    return found


@pytest.mark.parametrize("receptor", ["pulses", "conductances"])
@pytest.mark.parametrize("rule", ["stdp", "triplet"])
def test_weights_change_by_all_pairs_and_triplets_of_spikes(rule: str, receptor: str) -> None:
    before = brain(rule, receptor, weight=0.5 if receptor == "pulses" else 0.05)
    activity, after, _, _ = learn(before, before.begin(batch=2), STEPS, events=True, most=8.0)
    assert activity.events is not None
    weight = before.projections[0].config.weight
    each = [counted(after, activity.events, rule, row) for row in range(2)]
    change = torch.tensor([sum(much for _, much in one + two) for one, two in zip(*each, strict=True)])
    assert change.abs().max() > 0.01
    expected = before.projections[0].synapses.weights + 8 * weight * change
    assert 0 < float(expected.min()) <= float(expected.max()) < 8 * weight, "bounds would hide the sums"
    torch.testing.assert_close(after.projections[0].synapses.weights, expected, rtol=1e-4, atol=1e-6)


def test_three_factors_pay_out_by_dopamine_what_came_before_it() -> None:
    before = brain("three_factor")
    state, memory, levels = before.begin(), None, [Levels(), Levels(dopamine=3), Levels(dopamine=0.5)]
    one, events = before, []
    for number, level in enumerate(levels):
        activity, one, memory, state = learn(one, state, STEPS, memory=memory, levels=level, events=True)
        assert activity.events is not None
        events.append(activity.events + torch.tensor([0, number * STEPS, 0]))
        if number == 0:
            assert torch.equal(one.projections[0].synapses.weights, before.projections[0].synapses.weights)
    share = 1 / ELIGIBLE_MS

    def paid(at: int, much: float) -> float:
        factors = [(step, levels[step // STEPS].factor("dopamine")) for step in range(at, 3 * STEPS)]
        return sum(much * factor * share * math.exp(-(step - at) * share) for step, factor in factors)

    change = torch.tensor(
        [sum(paid(*pair) for pair in all_) for all_ in counted(one, torch.cat(events), "three_factor")]
    )
    assert change.abs().max() > 1e-3
    expected = before.projections[0].synapses.weights + change
    torch.testing.assert_close(one.projections[0].synapses.weights, expected, rtol=1e-5, atol=1e-6)


def test_what_is_handed_in_stays_and_two_halves_are_the_whole() -> None:
    before = brain("stdp")
    weights, state = before.projections[0].synapses.weights.clone(), before.begin()
    membranes = state.populations["ear"].membranes.v.clone()
    _, whole, _, end = learn(before, state, STEPS)
    _, half, memory, middle = learn(before, state, STEPS // 2)
    _, again, _, _ = learn(half, middle, STEPS // 2, memory=memory)
    _, other, _, last = learn(half, middle, STEPS // 2, memory=memory)
    assert torch.equal(whole.projections[0].synapses.weights, other.projections[0].synapses.weights)
    assert torch.equal(again.projections[0].synapses.weights, other.projections[0].synapses.weights)
    assert torch.equal(end.populations["ear"].membranes.v, last.populations["ear"].membranes.v)
    assert torch.equal(before.projections[0].synapses.weights, weights)
    assert torch.equal(state.populations["ear"].membranes.v, membranes)
    assert not torch.equal(half.projections[0].synapses.weights, weights)


def test_learned_weights_are_those_that_run_and_modulators_do_not_stay_in_them() -> None:
    before = brain("three_factor")
    activity, after, _, end = learn(before, before.begin(), STEPS, levels=Levels(serotonin=2, noradrenaline=1.5))
    torch.testing.assert_close(after.projections[1].synapses.weights, before.projections[1].synapses.weights)
    assert after.regions == before.regions
    unmoved, _ = run(before, before.begin(), STEPS)
    assert not torch.equal(activity.counts, unmoved.counts)
    assert end.clock == STEPS


@pytest.mark.parametrize("weight", [0.5, -0.5])
def test_no_weight_leaves_its_bounds_or_changes_sides(weight: float) -> None:
    strong = {"stdp": type(WINDOWS["stdp"])(plus=0.5, minus=0.6)}
    before = brain("stdp", weight=weight)
    _, after, _, _ = learn(before, before.begin(), STEPS, windows=strong)
    magnitude = after.projections[0].synapses.weights * math.copysign(1, weight)
    assert float(magnitude.min()) == 0
    assert float(magnitude.max()) <= 1
    assert len(set(magnitude.tolist())) > 1


def test_a_rule_that_is_not_defined_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"plasticity in projections\[0\] \(ear -> mouth\).*stdp"):
        plastic(brain("sdtp"))
    with pytest.raises(ConfigError, match="no projection is plastic"):
        learn(brain(None), brain(None).begin(), 1)
