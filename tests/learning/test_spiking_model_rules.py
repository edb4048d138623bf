"""Rules on a spiking language model: who changes, that the loss falls, and each rule's sum written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.learning import RULES, SPIKING_RULES, learning_rule
from pragnosia.learning.feedback_alignment import angle
from pragnosia.learning.spiking import silenced
from pragnosia.spiking.neurogen import NeuroGenForCausalLM
from pragnosia.spiking.neurogen_configuration import NeuroGenConfig

NEURON = {"kind": "lifa", "tau_ms": 3, "threshold_mv": 1, "refractory_ms": 0, "tau_adaptation_ms": 20,
          "adaptation_mv": 0.2}  # fmt: skip
PROJECTIONS = [
    {"source": "ear", "target": "mouth", "fan_in": 8, "weight": 0.5, "mixed": True, "delay_ms": [1, 3]},
    {"source": "mouth", "target": "mouth", "fan_in": "all", "weight": 0.25, "mixed": True, "delay_ms": 2},
]
CHANGED = {
    "surrogate": {"enter", "wires", "read"},
    "eprop": {"enter", "wires", "read"},
    "factorised": {"enter", "wires", "read"},
    "three_factor": {"enter", "wires", "read"},
    "dfa": {"enter", "wires", "read"},
    "stdp": {"wires", "read"},
    "triplet": {"wires", "read"},
    "hebb": {"wires", "read"},
    "oja": {"wires", "read"},
    "delta": {"read"},
}


def mind(**changes: Any) -> NeuroGenForCausalLM:
    torch.manual_seed(0)
    brain = {
        "neuron": NEURON,
        "populations": {"ear": {"size": 20}, "mouth": {"size": 16}},
        "projections": PROJECTIONS,
    }
    values = {"vocab_size": 9, "brain": brain, "rank": 6, "trace_tokens": [0.7, 2.0]} | changes
    return NeuroGenForCausalLM(NeuroGenConfig(**values)).train()


def circles() -> Tensor:
    """(6, 13): the next token is fully determined."""
    return (torch.arange(13) + torch.arange(6)[:, None]) % 7


def step(rule: Any, model: NeuroGenForCausalLM, optimiser: torch.optim.Optimizer, tokens: Tensor) -> float:
    optimiser.zero_grad()
    lesson = rule.learn(model, tokens, 1.0)
    optimiser.step()
    rule.settle(model, [lesson])
    return float(lesson.loss)


def test_every_rule_is_in_the_contract() -> None:
    assert CHANGED.keys() == SPIKING_RULES.keys()


@pytest.mark.parametrize("name", CHANGED)
def test_only_what_a_rule_declares_changes(name: str) -> None:
    model, rule = mind(), learning_rule(name, mind="spiking model")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    declared = {key for key, _ in rule.changes(model)}
    optimiser = torch.optim.Adam([weight for _, weight in rule.changes(model)], 0.01)
    for _ in range(3):
        step(rule, model, optimiser, circles())
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == declared
    assert {key.split(".")[0] for key in changed} == CHANGED[name]


@pytest.mark.parametrize(("name", "told"), [*((name, {}) for name in CHANGED), ("eprop", {"feedback": "random"})])
def test_the_loss_falls(name: str, told: dict[str, Any]) -> None:
    model, rule = mind(), learning_rule(name, mind="spiking model", told=told)
    optimiser = torch.optim.Adam([weight for _, weight in rule.changes(model)], 0.02)
    losses = [step(rule, model, optimiser, circles()) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("plastic", [True, False])
def test_what_the_readout_hears_may_be_silenced(plastic: bool) -> None:
    """By events and by products: a share is gone, the rest is louder, and only while it learns."""
    model = mind(dropout=0.25, plastic=plastic)
    heard = model.hear(circles(), slopes=plastic)
    part = silenced(model, heard)
    if plastic:
        traces, left = heard.traces, part.traces
    else:
        traces, left = (one.fires.dense() for one in (heard, part))
    gone = (left == 0) & (traces != 0)
    assert 0.15 < float(gone.sum() / (traces != 0).sum()) < 0.35
    torch.testing.assert_close(left[~gone], traces[~gone] / 0.75)
    assert torch.equal(part.counts, heard.counts) == plastic, "spikes stay, of a list the readout's are all there is"
    model.eval()
    assert silenced(model, heard) is heard
    with pytest.raises(ConfigError, match="dropout is 1"):
        mind(dropout=1.0)


@pytest.mark.parametrize("name", CHANGED)
def test_products_may_be_in_bfloat16(name: str) -> None:
    model = mind(lines=2)
    plain, mixed = (learning_rule(name, mind="spiking model", autocast=dtype) for dtype in (None, torch.bfloat16))
    gradients = []
    for rule in (plain, mixed):
        model.zero_grad()
        lesson = rule.learn(model, circles(), 1.0)
        getattr(rule, "pending", []).clear()
        assert lesson.loss.dtype is torch.float32
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    assert all(one.dtype is torch.float32 for one in gradients[1])
    assert angle(*gradients) < 25, "a neuron at its threshold may fire in one and not in the other"
    optimiser = torch.optim.Adam([weight for _, weight in mixed.changes(model)], 0.02)
    losses = [step(mixed, model, optimiser, circles()) for _ in range(40)]
    assert losses[-1] < 0.6 * losses[0]


def wishes(name: str, model: NeuroGenForCausalLM, **told: Any) -> dict[str, Tensor]:
    """Of synapses and currents."""
    model.zero_grad()
    rule: Any = learning_rule(name, mind="spiking model", told=told)
    rule.learn(model, circles(), 1.0)
    for weight, change in getattr(rule, "pending", []):
        weight.grad = change if weight.grad is None else weight.grad + change
    return {key: w.grad.clone() for key, w in model.named_parameters() if w.grad is not None and key[:4] != "read"}


@pytest.mark.parametrize("lines", [1, 3])
def test_local_rules_go_the_gradients_way(lines: int) -> None:
    model = mind(lines=lines)
    exact = wishes("surrogate", model)
    for name, most in (("eprop", 45), ("factorised", 80)):
        assert angle(wishes(name, model).values(), exact.values()) < most, name
    heard = wishes("eprop", model, feedback="random")
    assert angle(heard.values(), exact.values()) > 45


def test_an_accumulated_batch_is_the_batch() -> None:
    for name in ("surrogate", "eprop", "factorised"):
        model = mind()
        whole = wishes(name, model)
        model.zero_grad()
        rule = learning_rule(name, mind="spiking model")
        for part in circles().chunk(2):
            rule.learn(model, part, 0.5)
        for key, wish in whole.items():
            torch.testing.assert_close(model.get_parameter(key).grad, wish, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["factorised", "dfa"])
def test_a_rule_of_the_moment_is_its_sum_forwards(name: str) -> None:
    """dW[i, k] = sum_t sum_j (L_j psi)_k[t] filter_j(ev_i)[t]: traces forwards, nothing kept for a synapse."""
    model = mind()
    got = wishes(name, model)["wires.1.weight"]
    with torch.no_grad():
        heard = model.hear(circles(), slopes=True)
        logits = model.read(heard.traces)
        error = logits.softmax(-1)
        error -= torch.nn.functional.one_hot(circles().T.roll(-1, 0), 9)
        error[-1] = 0
        error /= error[:-1, :, 0].numel()
        drawn = torch.randn(9, 36, generator=torch.Generator().manual_seed(0)) / 6
        told = model.read.back(error).chunk(2, -1) if name == "factorised" else (error @ drawn,) * 2
    film, span, leak = heard.film, slice(20, 36), math.exp(-1 / 3)
    assert film is not None
    expected = torch.zeros(16, 16)
    ev = torch.zeros(6, 16)
    filtered = [torch.zeros(6, 16) for _ in model.kappas]
    for at in range(len(film.spikes)):
        sent = film.spikes[at - 2, :, span] if at >= 2 else torch.zeros(6, 16)
        ev = leak * ev + sent
        for number, kappa in enumerate(model.kappas):
            filtered[number] = kappa * filtered[number] + ev
            expected += filtered[number].T @ (told[number][at, :, span] * film.slopes[at, :, span])
    assert float(expected.abs().max()) > 1e-4
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


def test_every_neuron_hears_by_direct_feedback_and_no_other_way_unless_it_is_read() -> None:
    model = mind(out=["mouth"])
    for name, heard in (("dfa", True), ("eprop", False), ("factorised", False)):
        wish = wishes(name, model)
        assert bool(wish["enter.codes"].any()) is heard, name
        assert bool(wish["wires.1.weight"].any()), name


def arrived(model: NeuroGenForCausalLM) -> tuple[Tensor, Tensor]:
    """(S, 6, 16) twice: spikes of the mouth as they arrive there again, two steps late, and as they are fired."""
    with torch.no_grad():
        film = model.hear(circles(), slopes=True).film
    assert film is not None
    post = film.spikes[:, :, 20:36]
    return torch.cat([torch.zeros_like(post[:2]), post[:-2]]), post


@pytest.mark.parametrize("name", ["hebb", "oja"])
def test_hebb_and_oja_are_their_sums_forwards(name: str) -> None:
    model = mind()
    got = wishes(name, model)["wires.1.weight"]
    pre, post = arrived(model)
    weight = model.get_parameter("wires.1.weight").detach()
    trace, total = torch.zeros(6, 16), torch.zeros(16, 16)
    for before, behind in zip(pre, post, strict=True):
        trace = math.exp(-1 / 3) * trace + before
        for row in range(6):
            for k in range(16):
                if behind[row, k]:
                    total[:, k] += trace[row] - (weight[:, k] if name == "oja" else 0)
    assert float(total.abs().max()) > 1
    torch.testing.assert_close(-got * post[..., 0].numel(), total, rtol=1e-3, atol=1e-4)


def test_ojas_synapses_of_few_pairs_rest_where_those_of_all_would() -> None:
    """Of a projection that wires some pairs: each synapse gives up its own share for each spike of its target."""
    model = mind()
    hebb, oja = (wishes(name, model)["wires.0.weight"] for name in ("hebb", "oja"))
    with torch.no_grad():
        film = model.hear(circles(), slopes=True).film
    assert film is not None
    fired = film.spikes.sum((0, 1)) / film.spikes[..., 0].numel()
    way = model.circuit.ways[0]
    assert way.reaches is not None
    expected = [w * float(fired[int(k)]) for w, k in zip(model.synapses[0].tolist(), way.reaches, strict=True)]
    torch.testing.assert_close(oja - hebb, torch.tensor(expected), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["stdp", "triplet"])
def test_stdp_is_the_rule_of_pairs_or_triplets(name: str) -> None:
    """Spike by spike, as learning/stdp.py counts them, of spikes as they arrive."""
    from pragnosia.learning.plasticity import WINDOWS
    from pragnosia.learning.stdp import Traces, stdp

    model = mind()
    got = wishes(name, model)["wires.1.weight"]
    pre, post = arrived(model)
    traces, total = Traces.silent(pre[0], post[0]), torch.zeros(16, 16)
    for before, behind in zip(pre, post, strict=True):
        change, traces = stdp(before, behind, traces, WINDOWS[name])
        total += change
    torch.testing.assert_close(-got.T * post[..., 0].numel(), total, rtol=1e-3, atol=1e-5)


def test_dopamine_that_is_as_expected_teaches_nothing() -> None:
    model = mind()
    with torch.no_grad():
        model.read.up.zero_()
    assert not any(bool(wish.any()) for key, wish in wishes("three_factor", model).items() if key.startswith("wires"))
    assert any(bool(wish.abs().max() > 1e-6) for wish in wishes("three_factor", mind()).values())


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("backprop", {"mind": "spiking model"}, "learns by surrogate, eprop"),
        ("eprop", {}, "not defined for a cortex; it learns by backprop"),
        ("surogate", {"mind": "spiking model"}, "surrogate"),
        ("eprop", {"mind": "spiking model", "told": {"feedback": "none"}}, "symmetric"),
    ],
)
def test_a_rule_that_is_not_defined_is_one_line(name: str, how: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        learning_rule(name, **how)
    assert "\n" not in str(caught.value)
    assert "dfa" in RULES
