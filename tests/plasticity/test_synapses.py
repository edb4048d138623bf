"""Synapses that die and grow: who goes, who stays what it was, and that moments of those who stay go along."""

from __future__ import annotations

from typing import Any

import torch

from pragnosia import NeuroGenConfig, NeuroGenForCausalLM
from pragnosia.learning import learning_rule
from pragnosia.plasticity.synapses import RewiringConfig, rewire
from pragnosia.training.growing import follow
from pragnosia.training.optimisers import OptimiserConfig, Optimisers

BRAIN = {
    "neuron": {"kind": "lifa", "tau_ms": 2, "threshold_mv": 1, "refractory_ms": 0},
    "populations": {"ear": {"size": 24}, "mouth": {"size": 12}},
    "projections": [
        {"source": "ear", "target": "mouth", "fan_in": 6, "weight": 0.5, "mixed": True, "delay_ms": [1, 3]},
        {"source": "ear", "target": "ear", "fan_in": 4, "weight": -0.2, "delay_ms": 2},
        {"source": "mouth", "target": "ear", "fan_in": "all", "weight": 0.2, "mixed": True},
    ],
}
CONFIG = RewiringConfig(share=0.25, newborn=0.5)


def mind() -> NeuroGenForCausalLM:
    torch.manual_seed(0)
    return NeuroGenForCausalLM(NeuroGenConfig(vocab_size=9, brain=BRAIN, rank=4))


def synapses(model: Any, number: int) -> list[tuple[int, int, float]]:
    """(source, slot, weight) of each, in order."""
    one = model.wires[number]
    source = torch.repeat_interleave(torch.arange(24), one.starts.diff().long())
    return list(zip(source.tolist(), one.slots.tolist(), one.weight.tolist(), strict=True))


def test_the_weakest_go_and_the_others_stay() -> None:
    model = mind()
    with torch.no_grad():
        for one in model.wires:
            one.weight.add_(0.01 * torch.randn(one.weight.shape))
    before = [synapses(model, number) for number in (0, 1)]
    matrix = model.wires[2].weight.clone()
    change, died = rewire(model, CONFIG, seed=3, step=10)
    assert died == 18 + 24
    assert torch.equal(model.wires[2].weight, matrix)
    for number, old in enumerate(before):
        now = synapses(model, number)
        assert now == sorted(now, key=lambda one: one[:2]), "by source, then by slot, as kernels read them"
        quarter = len(old) // 4
        strongest = sorted(old, key=lambda one: abs(one[2]))[quarter:]
        source = change.origins[f"wires.{number}.weight"].axes[0].source.tolist()
        assert sorted(one for one, was in zip(now, source, strict=True) if was >= 0) == sorted(strongest)
        assert all(now[at] == old[was] for at, was in enumerate(source) if was >= 0)
        targets, fan_in = ((12, 6), (24, 4))[number]
        assert torch.bincount(torch.tensor([slot % targets for _, slot, _ in now])).tolist() == [fan_in] * targets
        delays = {slot // targets for _, slot, _ in now}
        assert delays <= ({1, 2, 3}, {2})[number]
    born = [one for one in synapses(model, 1) if one[2] == torch.tensor(-0.1).item()]
    assert len(born) == 24
    assert all(slot % 24 != source for source, slot, _ in synapses(model, 1)), "nobody is wired to itself"


def test_the_same_step_draws_the_same() -> None:
    one, other, later = mind(), mind(), mind()
    for model, step in ((one, 4), (other, 4), (later, 5)):
        rewire(model, CONFIG, seed=0, step=step)
    assert synapses(one, 0) == synapses(other, 0)
    assert synapses(one, 0) != synapses(later, 0)


def test_spikes_go_the_new_ways_and_moments_go_along() -> None:
    model, rule = mind(), learning_rule("surrogate", mind="spiking model")
    optimisers = Optimisers(list(rule.changes(model)), set(), OptimiserConfig(newborn_steps=0))
    tokens = torch.randint(0, 9, (2, 12), generator=torch.Generator().manual_seed(0))
    rule.learn(model, tokens, 1.0)
    optimisers.step(1.0)
    optimisers.zero()
    name = "wires.0.weight/exp_avg_sq"
    moments = optimisers.state()[name].clone()
    change, _ = rewire(model, CONFIG, seed=0, step=1)
    follow(change, model, rule, optimisers)
    source = change.origins["wires.0.weight"].axes[0].source
    expected = torch.where(source >= 0, moments[source.clamp_min(0)], 0.0)
    assert float(moments.max()) > 0
    torch.testing.assert_close(optimisers.state()[name], expected)
    again = NeuroGenForCausalLM(model.config)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, again(tokens).logits), "what was laid out before is not used again"
