"""The rule behind lobes: who wakes, what the routers are told, and who learns in which stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.learning.lobes import DomainLesson, LobeRule, only, router_loss
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.thalamus import sparse

LOBES = {"left": 3, "right": 3}


@pytest.fixture(params=["softmax", "sigmoid", "threshold"])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    experts = {"num_units": 6, "unit_width": 8, "lobes": LOBES, "thalamus": {"kind": request.param, "num_awake": 2}}
    config = PragnosiaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        max_position_embeddings=32,
        attention={"num_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
        experts=experts,
        initializer_range=0.2,
    )
    return PragnosiaForCausalLM(config).train()


@pytest.fixture
def rows() -> Tensor:
    return torch.randint(40, (4, 12), generator=torch.Generator().manual_seed(1))


def lesson(stage: str, supervision: float = 0.0) -> DomainLesson:
    return DomainLesson(("left", "right", "right", "left"), stage, supervision)


def slopes(model: Any) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_a_row_wakes_its_own_lobe_alone(model: Any, rows: Tensor) -> None:
    for lobe, units in (("left", range(3)), ("right", range(3, 6))):
        with only(model, lobe), torch.no_grad():
            routings = sparse(model(rows, labels=rows, use_cache=False).routings)
        woken = torch.cat([routing.units[routing.strengths > 1e-3] for routing in routings])
        assert set(woken.tolist()) <= set(units)
        assert len(woken)
    with pytest.raises(ConfigError, match="unknown lobe 'middle'"), only(model, "middle"):
        pass
    assert not any(experts.thalamus.steering.any() for experts in model.experts())


def test_routers_are_told_what_they_would_have_thought(model: Any, rows: Tensor) -> None:
    """The cross-entropy under steering is that of the logits without, worked out from what each router was given."""
    seen: list[Tensor] = []
    hooks = [
        experts.thalamus.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        for experts in model.experts()
    ]
    with only(model, "right"):
        told = router_loss(model, model(rows, labels=rows, use_cache=False).routings, "right")
    for hook in hooks:
        hook.remove()
    wanted = []
    for x, experts in zip(seen, model.experts(), strict=True):
        chances = (x @ experts.thalamus.weight.T).softmax(-1)
        wanted.append(-chances[:, 3:].sum(-1).log().mean())
    torch.testing.assert_close(told, torch.stack(wanted).mean(), rtol=1e-4, atol=1e-5)


def test_the_first_stage_is_the_sum_over_domains(model: Any, rows: Tensor) -> None:
    rule = LobeRule()
    got = rule.learn(model, rows, 0.5, domains=lesson("experts", 0.1))
    mine = slopes(model)
    model.zero_grad()
    total = torch.zeros(())
    for lobe, part in (("left", rows[[0, 3]]), ("right", rows[[1, 2]])):
        with only(model, lobe):
            output = model(part, labels=part, use_cache=False)
            total = total + 0.5 * output.loss
            (0.5 * 0.5 * (output.loss + 0.1 * router_loss(model, output.routings, lobe))).backward()
    torch.testing.assert_close(got.loss, total.detach())
    for name, slope in slopes(model).items():
        torch.testing.assert_close(mine[name], slope, rtol=1e-4, atol=1e-7)
    assert len(sparse(got.routings)[0].units) == rows.numel()
    rule.settle(model, [got])


def test_supervision_teaches_routers_to_tell_domains(model: Any) -> None:
    """Two domains that use different words: after a few steps each wakes its own lobe, unsteered."""
    draw = torch.Generator().manual_seed(2)
    rule, optimiser = LobeRule(), torch.optim.AdamW(model.parameters(), lr=1e-2)
    told = DomainLesson(("left",) * 4 + ("right",) * 4, "experts", 0.1)
    for _ in range(25):
        rows = torch.cat([torch.randint(20, (4, 12), generator=draw), torch.randint(20, 40, (4, 12), generator=draw)])
        optimiser.zero_grad()
        rule.learn(model, rows, 1.0, domains=told)
        optimiser.step()
    with torch.no_grad():
        losses = [
            float(router_loss(model, model(part, labels=part, use_cache=False).routings, lobe))
            for part, lobe in ((rows[:4], "left"), (rows[4:], "right"))
        ]
    assert max(losses) < 0.2  # ln 2 where it cannot tell


def test_routers_learn_alone(model: Any, rows: Tensor) -> None:
    rule = LobeRule()
    rule.learn(model, rows, 1.0, domains=lesson("routers"))
    found = slopes(model)
    assert found
    assert all(".thalamus." in name for name in found)
    assert all(weight.requires_grad for weight in model.parameters())
    model.zero_grad()
    rule.learn(model, rows, 1.0, domains=lesson("all"))
    free = slopes(model)
    assert any(".bank." in name for name in free)
    for name, slope in found.items():
        torch.testing.assert_close(free[name], slope)


# A threshold wakes whoever passes it: where one lobe is pushed, the other need not fall silent.
@pytest.mark.parametrize("model", ["softmax", "sigmoid"], indirect=True)
def test_steering_changes_what_is_said(model: Any) -> None:
    """Every row begins alike; the lobe that is pushed up says what its domain goes on with, the other one its own."""
    draw = torch.Generator().manual_seed(3)
    rule, optimiser = LobeRule(), torch.optim.AdamW(model.parameters(), lr=1e-2)
    told = DomainLesson(("left",) * 6 + ("right",) * 6, "experts", 0.1)
    for _ in range(25):
        rows = torch.cat([torch.randint(1, 20, (6, 8), generator=draw), torch.randint(20, 40, (6, 8), generator=draw)])
        rows[:, 0] = 0
        optimiser.zero_grad()
        rule.learn(model, rows, 1.0, domains=told)
        optimiser.step()
    model.eval()

    def lefts() -> float:
        said = model.generate(torch.zeros(8, 1, dtype=torch.long), max_new_tokens=6, do_sample=True)[:, 1:]
        return float((said < 20).float().mean())

    torch.manual_seed(0)
    with model.steer("left", 8.0):
        assert lefts() > 0.85
    with model.steer("right", 8.0):
        assert lefts() < 0.15
    with model.steer("right", -8.0):
        assert lefts() > 0.85
