"""The spiking feed-forward: its neurons step by step, the slope that stands in for a spike's, and what it is beside."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pragnosia.errors import ConfigError
from pragnosia.inference.decode import Decoder
from pragnosia.inference.program import writable
from pragnosia.inference.sampling import Sampling
from pragnosia.measure.accounting import account
from pragnosia.model.configuration import LIFConfig, PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.spiking_feed_forward import spike_rates
from pragnosia.spiking.neurons import LIF, Given, Membranes, step

Make = Callable[..., PragnosiaForCausalLM]
LIFE: dict[str, Any] = {"num_steps": 6, "tau_steps": 2.5, "threshold": 0.4, "slope": 3.0}


@pytest.fixture
def model(tiny_model: Make) -> PragnosiaForCausalLM:
    return tiny_model(experts=None, lif={"width": 12})


def test_neurons_are_those_of_the_spiking_room() -> None:
    current = torch.linspace(-1, 3, 41)[None]
    neuron = LIF(tau_ms=LIFE["tau_steps"], threshold_mv=LIFE["threshold"], refractory_ms=0)
    state = Membranes(torch.zeros(1, 41), torch.zeros(1, 41), torch.zeros(1, 41, dtype=torch.uint8))
    count = torch.zeros(1, 41)
    for _ in range(LIFE["num_steps"]):
        spikes, state = step(neuron, Given(current), state, 1.0)
        count += spikes
    rates = spike_rates(current, **LIFE)
    assert torch.equal(rates, count / LIFE["num_steps"])
    assert 0 < float(rates.mean()) < 1
    assert len(rates.unique()) > 3


def test_who_stays_below_the_threshold_is_silent() -> None:
    """Under a constant current i a membrane that never fires is at (1 - a^S) i after S steps."""
    reach = 1 - math.exp(-LIFE["num_steps"] / LIFE["tau_steps"])
    edge = LIFE["threshold"] / reach
    below, above = spike_rates(torch.tensor([0.999 * edge, 1.001 * edge]), **LIFE)
    assert float(below) == 0
    assert float(above) == pytest.approx(1 / LIFE["num_steps"])


def test_the_slope_is_the_one_that_is_stated() -> None:
    """By the chain rule over the steps, with what a spike takes from the membrane held still."""
    current = torch.linspace(-1, 3, 41, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(spike_rates(current, **LIFE).sum(), current)
    a, theta = math.exp(-1 / LIFE["tau_steps"]), LIFE["threshold"]
    expected = []
    for i in current.tolist():
        v = rise = slope = 0.0
        for _ in range(LIFE["num_steps"]):
            u, rise = a * v + (1 - a) * i, a * rise + (1 - a)  # rise: du/di
            slope += rise / theta / (1 + LIFE["slope"] * abs(u / theta - 1)) ** 2
            v = u - theta * (u > theta)
        expected.append(slope / LIFE["num_steps"])
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_who_is_silent_is_not_heard(model: PragnosiaForCausalLM, tokens: torch.Tensor) -> None:
    organ: Any = model.model.layers[0].feed_forward
    with torch.no_grad():
        organ.up.weight.zero_()
        said, routing = organ(torch.randn(1, 5, 24), None)
    assert not said.any()
    assert routing is None
    assert model(tokens).logits.isfinite().all()


def test_it_learns(tiny_config: Callable[..., PragnosiaConfig]) -> None:
    """Only its own matrices may change: the loss falls through the spikes."""
    torch.manual_seed(0)
    model = PragnosiaForCausalLM(tiny_config(experts=None, lif={"width": 32}))
    tokens = torch.randint(0, 61, (4, 12), generator=torch.Generator().manual_seed(1))
    own = [weight for layer in model.model.layers for weight in layer.feed_forward.parameters()]
    learner = torch.optim.Adam(own, lr=0.02)
    losses = []
    for _ in range(40):
        learner.zero_grad()
        loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        learner.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_single_tokens_are_spoken_by_modules(model: PragnosiaForCausalLM) -> None:
    assert not writable(model, model.fresh_state(1, 8))
    decoder = Decoder(model, 16)
    decoder.read([3, 4, 5])
    said = list(decoder.speak(6, Sampling()))
    assert decoder.decoding == "modules"
    ids = torch.tensor([[3, 4, 5, *said]])
    with torch.no_grad():
        assert model(ids, use_cache=False).logits[0, 2:-1].argmax(-1).tolist() == said


def test_every_parameter_is_counted(model: PragnosiaForCausalLM) -> None:
    counted = account(model)
    assert counted.total_parameters == sum(weight.numel() for weight in model.parameters())
    assert counted.layers[0].hidden == 2 * 12 + 4 * 12, "currents, rates, and a membrane for every step"


def test_what_is_left_out() -> None:
    config = PragnosiaConfig(lif={"width": 64})
    assert config.feed_forwards == ["spiking"] * 4
    assert config.experts is None
    assert config.lif == LIFConfig(width=64, num_steps=4, tau_steps=2.0, threshold=0.5, slope=2.0)
    assert PragnosiaConfig.from_dict(config.to_dict()).lif == config.lif


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"feed_forwards": "spiking"}, "feed_forwards name spiking, lif is not configured"),
    ({"lif": {"num_steps": 0}}, "lif.num_steps is 0; it must be greater than 0"),
    ({"lif": {"num_steps": 2.5}}, "lif.num_steps is 2.5; it must be a whole number"),
    ({"lif": {"threshold": -1}}, "lif.threshold is -1; it must be greater than 0"),
    ({"lif": {"treshold": 1}}, "Did you mean 'threshold'"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_a_wrong_configuration_is_one_clear_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        PragnosiaConfig(**values)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
