"""The compiled step beside the reference: noise, competition, batches, threads, number types; states are values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pragnosia import kernels
from pragnosia.errors import ConfigError, SimulationError
from pragnosia.kernels import spikes as kernel
from pragnosia.spiking.configuration import read_brain
from pragnosia.spiking.noise import gaussians, philox
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.running import run
from pragnosia.spiking.state import BrainState

compiled = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
DRIVE = {"constant": {"mean_mv": 17, "spread_mv": 3}, "noise": {"mean_mv": 12, "spread_mv": 2, "sigma_mv": 5}}


def wired(receptor: str = "pulses", neuron: str = "lifa", **population: Any) -> dict[str, Any]:
    """Two populations that speak to themselves and to each other."""
    weight = 0.05 if receptor == "conductances" else 0.5
    return {
        "drive": DRIVE,
        "receptor": {"kind": receptor},
        "neuron": {"kind": neuron},
        "populations": {"cortex": {"size": 90, **population}, "thalamus": {"size": 33}},
        "projections": [
            {
                "source": "cortex",
                "target": "thalamus",
                "fan_in": 8,
                "weight": weight,
                "delay_ms": [3, 9],
                "spread": 0.5,
            },
            {"source": "thalamus", "target": "cortex", "fan_in": 4, "weight": weight, "delay_ms": 4},
            {"source": "cortex", "target": "cortex", "fan_in": 8, "weight": -weight, "delay_ms": [1, 2]},
        ],
    }


def close(one: BrainState, other: BrainState, tolerance: float) -> None:
    for name, state in one.populations.items():
        for ours, theirs in zip(state.tensors, other.populations[name].tensors, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@compiled
@pytest.mark.parametrize("drive", ["constant", "noise"])
@pytest.mark.parametrize("receptor", ["pulses", "currents", "conductances"])
@pytest.mark.parametrize("neuron", ["lif", "lifa", "izhikevich"])
def test_the_compiled_step_is_the_reference(neuron: str, receptor: str, drive: str) -> None:
    brain = Brain.build(read_brain(wired(receptor, neuron, winners=3)), drive=drive)
    state = brain.begin(batch=2)
    fired = 0
    # a step at a time from one state, so that rounding cannot grow into another spike
    for _ in range(60):
        expected, after = brain.step(state)
        activity, ours = run(brain, state, 1, backend="compiled", events=True)
        assert activity.counts[:, 0].tolist() == [[int(one[row].sum()) for one in expected.values()] for row in (0, 1)]
        close(ours, after, 2e-3 if neuron == "izhikevich" else 1e-4)
        fired += int(activity.counts.sum())
        state = after
    assert fired > 20


@compiled
@pytest.mark.parametrize("drive", ["constant", "noise"])
def test_many_steps_are_single_ones_on_any_number_of_threads(drive: str) -> None:
    brain = Brain.build(read_brain(wired()), drive=drive)
    assert brain.window == 3
    begun = brain.begin(batch=2)
    kept = begun.cloned()
    at_once, state = run(brain, begun, 50, events=True, tally=("cortex",))
    close(begun, kept, 0)  # a state is a value
    beside, other = run(brain, begun, 50, events=True, tally=("cortex",), threads=2)
    single = begun
    counts = []
    for _ in range(50):
        activity, single = run(brain, single, 1, consume=True)
        counts.append(activity.counts)
    assert torch.equal(torch.cat(counts, 1), at_once.counts)
    assert at_once.events is not None
    assert beside.events is not None
    assert torch.equal(at_once.events, beside.events)
    assert torch.equal(at_once.delivered, beside.delivered)
    close(state, other, 0)
    close(state, single, 1e-6)
    assert int(at_once.tally["cortex"].sum()) == int(at_once.counts[:, :, 0].sum()) > 0
    assert state.clock == single.clock == 50


@compiled
def test_only_synapses_of_who_spiked_are_counted() -> None:
    brain = Brain.build(read_brain(wired()))
    woken, _ = run(brain, brain.begin(), 40)
    every, _ = run(brain, brain.begin(), 40, backend="reference")
    assert woken.delivered.tolist() == every.delivered.tolist()
    assert 0 < woken.synaptic_operations < 40 * brain.num_synapses / 10


@compiled
@pytest.mark.parametrize("neuron", ["lif", "lifa"])
def test_bfloat16_membranes(neuron: str) -> None:
    brain = Brain.build(read_brain(wired(neuron=neuron)))
    state = brain.begin(dtype=torch.bfloat16)
    for _ in range(30):
        expected, after = brain.step(state)
        activity, ours = run(brain, state, 1, backend="compiled")
        assert activity.counts[0, 0].tolist() == [int(one.sum()) for one in expected.values()]
        close(ours, after, 1e-2)  # a rounding at most
        state = after
    assert state.populations["cortex"].membranes.v.dtype == torch.bfloat16


def test_bfloat16_that_would_stand_still_is_refused() -> None:
    slow = wired() | {"neuron": {"kind": "lifa", "tau_adaptation_ms": 400}}
    with pytest.raises(ConfigError, match=r"cortex: tau_adaptation_ms 400 .* stand still; use float32"):
        Brain.build(read_brain(slow)).begin(dtype=torch.bfloat16)


@compiled
def test_no_more_than_the_winners_fire() -> None:
    free = Brain.build(read_brain(wired()))
    held = Brain.build(read_brain(wired(winners=2)))
    most, _ = run(free, free.begin(), 100)
    few, _ = run(held, held.begin(), 100)
    assert int(most.counts[0, :, 0].max()) > 2
    assert int(few.counts[0, :, 0].max()) == 2


def test_the_winners_are_those_furthest_above_threshold() -> None:
    brain = Brain.build(read_brain({"populations": {"a": {"size": 5, "winners": 2, "inhibition_mv": 4}}}))
    state = brain.begin()
    current = torch.tensor([[500.0, 900.0, 0.0, 700.0, 400.0]])
    state.populations["a"].membranes.v.zero_()
    spikes, after = brain.step(state, {"a": current})
    assert spikes["a"].tolist() == [[0, 1, 0, 1, 0]]
    free = current[0] * (1 - torch.exp(torch.tensor(-1 / 20)))
    down = torch.tensor([4.0, 15.0, 0.0, 15.0, 4.0])
    torch.testing.assert_close(after.populations["a"].membranes.v[0], free - down)


def test_philox_is_the_published_one() -> None:
    """Known answers of the authors' own library, Random123."""
    words = philox(torch.tensor([[0, 0xFFFFFFFF]] * 4).numpy().astype("uint64"), 0)
    assert [f"{int(word):08x}" for word in words[:, 0]] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    every = philox(torch.tensor([[0xFFFFFFFF]] * 4).numpy().astype("uint64"), (1 << 64) - 1)
    assert [f"{int(word):08x}" for word in every[:, 0]] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]


@compiled
def test_noise_is_that_of_the_reference_and_gaussian() -> None:
    ours, expected = kernel.gaussians(7, 2, 300, 1, 40_003), gaussians(7, 2, 300, 1, 40_003)
    torch.testing.assert_close(ours, expected, rtol=2e-5, atol=2e-6)
    assert abs(float(ours.mean())) < 0.02
    assert abs(float(ours.var()) - 1) < 0.03
    assert abs(float((ours**4).mean()) - 3) < 0.2
    other = kernel.gaussians(8, 2, 300, 1, 40_003)
    assert abs(float((ours * other).mean())) < 0.02


def test_the_same_seed_is_the_same_brain() -> None:
    one, two = (Brain.build(read_brain(wired() | {"seed": 3})) for _ in range(2))
    other = Brain.build(read_brain(wired() | {"seed": 4}))
    for first, second, third in zip(one.projections, two.projections, other.projections, strict=True):
        assert torch.equal(first.synapses.slots, second.synapses.slots)
        assert not torch.equal(first.synapses.slots, third.synapses.slots)
    assert torch.equal(one.begin().populations["cortex"].membranes.v, two.begin().populations["cortex"].membranes.v)


@pytest.mark.parametrize("backend", [pytest.param("compiled", marks=compiled), "gathered"])
def test_a_membrane_that_is_no_number(backend: str) -> None:
    brain = Brain.build(read_brain(wired()))
    state = brain.begin()
    state.populations["thalamus"].membranes.v[0, 4] = torch.nan
    with pytest.raises(SimulationError, match=r"population 'thalamus' is not a number at step 0; look at") as caught:
        run(brain, state, 5, backend=backend)
    assert "\n" not in str(caught.value)


def test_currents_that_fit_nobody() -> None:
    brain = Brain.build(read_brain(wired()))
    with pytest.raises(ConfigError, match=r"unknown population 'cortx'.*'cortex'"):
        run(brain, brain.begin(), 1, {"cortx": torch.zeros(1, 90)})
    with pytest.raises(ConfigError, match=r"cortex has shape \(1, 4\), expected \(1, 90\)"):
        run(brain, brain.begin(), 1, {"cortex": torch.zeros(1, 4)})
    with pytest.raises(ConfigError, match=r"unknown backend 'cuda'"):
        run(brain, brain.begin(), 1, backend="cuda")


def test_slopes_reach_weights_and_currents() -> None:
    """What surrogate gradients need of a step: a `fire` that has a slope, and weights it can reach."""
    brain = Brain.build(read_brain(wired()))

    def fire(margin: torch.Tensor) -> torch.Tensor:
        soft = torch.sigmoid(margin)
        return (margin > 0).float() + soft - soft.detach()

    weights = brain.projections[1].synapses.weights.requires_grad_()
    current = torch.zeros(1, 33, requires_grad=True)
    state, total = brain.begin(), torch.zeros(())
    for _ in range(12):
        spikes, state = brain.step(state, {"thalamus": current}, fire=fire)
        total = total + spikes["cortex"].sum()
    total.backward()
    for found in (weights.grad, current.grad):
        assert found is not None
        assert float(found.abs().sum()) > 0
