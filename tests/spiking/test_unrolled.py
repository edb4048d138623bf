"""A brain unrolled by hand beside the reference step, torch's own gradient of it, and the traces of e-prop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.spiking.circuit import Circuit
from pragnosia.spiking.configuration import read_brain
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.synapses import Synapses
from pragnosia.spiking.unrolled import Slope, unroll

SLOPE = Slope(damp=0.4, width=0.8)


def wired(**changes: Any) -> dict[str, Any]:
    """One matrix onto itself, sparse ways of one and of many delays."""
    return {
        "drive": {"constant": {"mean_mv": 14, "spread_mv": 4}},
        "neuron": {"kind": "lifa", "refractory_ms": 2, **changes.pop("neuron", {})},
        "populations": {"ear": {"size": 9}, "cortex": {"size": 14, **changes}, "mouth": {"size": 7}},
        "projections": [
            {"source": "ear", "target": "cortex", "fan_in": 5, "weight": 4.0, "delay_ms": [1, 4], "spread": 0.5},
            {"source": "cortex", "target": "cortex", "fan_in": "all", "weight": 1.5, "mixed": True, "delay_ms": 2},
            {"source": "cortex", "target": "mouth", "fan_in": 6, "weight": 3.0, "mixed": True, "delay_ms": 3},
            {"source": "mouth", "target": "ear", "fan_in": "all", "weight": 2.0, "mixed": True, "delay_ms": 1},
        ],
    }


def parts(brain: Brain) -> list[Tensor]:
    weights = [one.synapses.weights.clone() for one in brain.projections]
    sizes = brain.config.populations
    return [
        weight.view(sizes[one.config.source].size, sizes[one.config.target].size)
        if one.config.fan_in == "all"
        else weight
        for one, weight in zip(brain.projections, weights, strict=True)
    ]


class _Fire(torch.autograd.Function):
    """torch's own way back, with the same slope."""

    @staticmethod
    def forward(ctx: Any, margin: Tensor, threshold: float) -> Tensor:
        ctx.save_for_backward(margin)
        ctx.threshold = threshold
        return (margin > 0).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * SLOPE(ctx.saved_tensors[0], torch.tensor(ctx.threshold)), None


def by_reference(brain: Brain, weights: list[Tensor], drive: Tensor, steps: int) -> tuple[Tensor, Any]:
    """Brain.step in torch, every operation with its own slope."""
    given = [
        replace(one, synapses=Synapses(one.synapses.starts, one.synapses.slots, weight.flatten()))
        for one, weight in zip(brain.projections, weights, strict=True)
    ]
    leak = float(Circuit.of(brain).leak[0])
    running, state, counts = replace(brain, projections=tuple(given)), brain.begin(drive.shape[1]), []
    for now in drive:
        total: Any = 0
        for _ in range(steps):
            currents = {"ear": now / (1 - leak)}
            spikes, state = running.step(state, currents, fire=lambda margin: _Fire.apply(margin, 15.0))  # type: ignore[no-untyped-call]
            total = total + torch.cat(list(spikes.values()), 1)
        counts.append(total)
    return torch.stack(counts), state


@pytest.mark.parametrize("changes", [{}, {"winners": 2}, {"neuron": {"refractory_ms": 0, "adaptation_mv": 3.0}}])
@pytest.mark.parametrize("steps", [1, 3])
def test_spikes_state_and_gradient_are_the_references(changes: dict[str, Any], steps: int) -> None:
    brain = Brain.build(read_brain(wired(**changes)))
    chance = torch.Generator().manual_seed(0)
    drive = 3 * torch.randn(12, 2, 9, generator=chance)
    worth = torch.randn(12, 2, 30, generator=chance)
    one, other = ([weight.clone().requires_grad_() for weight in parts(brain)] for _ in range(2))
    mine, theirs = drive.clone().requires_grad_(), drive.clone().requires_grad_()
    circuit = Circuit.of(brain)
    window = unroll(circuit, one, mine, [circuit.span("ear")], brain.begin(2), steps=steps, slope=SLOPE)
    counts, state = by_reference(brain, other, theirs, steps)
    assert 10 < float(counts.detach().sum()) < 0.5 * counts.numel() * steps
    assert torch.equal(window.counts.detach(), counts.detach())
    (window.counts * worth).sum().backward()
    (counts * worth).sum().backward()
    for ours, reference in zip([mine, *one], [theirs, *other], strict=True):
        assert reference.grad is not None
        assert float(reference.grad.abs().max()) > 0
        torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-4, atol=1e-5)
    for name, population in state.populations.items():
        for ours, reference in zip(window.state.populations[name].tensors, population.tensors, strict=True):
            torch.testing.assert_close(ours, reference.detach(), rtol=1e-4, atol=1e-4)
    assert window.state.clock == 12 * steps


def test_a_window_in_two_parts_is_the_window() -> None:
    brain = Brain.build(read_brain(wired()))
    circuit, weights = Circuit.of(brain), parts(brain)
    drive = 3 * torch.randn(20, 3, 9, generator=torch.Generator().manual_seed(1))
    into = [circuit.span("ear")]
    whole = unroll(circuit, weights, drive, into, brain.begin(3))
    first = unroll(circuit, weights, drive[:7], into, brain.begin(3))
    rest = unroll(circuit, weights, drive[7:], into, first.state)
    assert torch.equal(torch.cat([first.counts, rest.counts]), whole.counts)
    assert whole.film is None
    for name, population in whole.state.populations.items():
        for one, other in zip(rest.state.populations[name].tensors, population.tensors, strict=True):
            torch.testing.assert_close(one, other)


def test_without_spikes_the_gradient_is_eprops_traces() -> None:
    """dW[i, j] = sum_t L_j[t] e_ij[t], e = psi (ev - beta ea): forwards, two numbers for each synapse."""
    neurons, steps, rows = 10, 18, 2
    config = read_brain(
        {
            "neuron": {"kind": "lifa", "tau_ms": 6, "threshold_mv": 1, "refractory_ms": 0, "tau_adaptation_ms": 20,
                       "adaptation_mv": 0.3},
            "populations": {"cortex": {"size": neurons}},
            "projections": [{"source": "cortex", "target": "cortex", "fan_in": "all", "weight": 0.4, "mixed": True}],
        }
    )  # fmt: skip
    brain = Brain.build(config)
    circuit, weight = Circuit.of(brain), parts(brain)[0].requires_grad_()
    chance = torch.Generator().manual_seed(2)
    drive = torch.randn(steps, rows, neurons, generator=chance)
    told = torch.randn(steps, rows, neurons, generator=chance)
    into = [circuit.spans[0]]
    window = unroll(circuit, [weight], drive, into, brain.begin(rows), slope=SLOPE, through_spikes=False)
    (window.counts * told).sum().backward()
    assert window.film is not None
    leak, fading, beta = float(circuit.leak[0]), float(circuit.fading[0]), 0.3
    ev = torch.zeros(rows, neurons)
    ea, expected, before = (
        torch.zeros(rows, neurons, neurons),
        torch.zeros(neurons, neurons),
        torch.zeros(rows, neurons),
    )
    for spikes, psi, error in zip(window.film.spikes, window.film.slopes, told, strict=True):
        ev = leak * ev + before
        own = psi[:, None] * (ev[:, :, None] - beta * ea)
        expected += (error[:, None] * own).sum(0)
        ea, before = fading * ea + own, spikes
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-5)


def test_what_it_has_no_equations_for_is_told() -> None:
    values = wired()
    values["populations"]["cortex"]["receptor"] = {"kind": "currents"}
    with pytest.raises(ConfigError, match=r"populations.cortex.*pulses"):
        Circuit.of(Brain.build(read_brain(values)))
    noisy = wired() | {"drive": {"noise": {"mean_mv": 1, "sigma_mv": 3}}}
    with pytest.raises(ConfigError, match="without noise"):
        Circuit.of(Brain.build(read_brain(noisy), drive="noise"))
