"""Recovery: half of the weights are gone at the end, and most of what they knew is back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM
from pragnosia.errors import ConfigError, TrainingError
from pragnosia.kernels.pruned import kept
from pragnosia.model.bank import Bank
from pragnosia.model.linear import Linear
from pragnosia.training import recovery
from pragnosia.training.recovery import TwoOfFour, recover

COUNTING = [(torch.arange(32) * step) % 40 for step in range(1, 17)]


@pytest.fixture(scope="module")
def able() -> dict[str, torch.Tensor]:
    """A tiny model's weights, once it can count."""
    model = tiny()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = torch.stack(COUNTING)
    for _ in range(90):
        optimiser.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimiser.step()
    return model.state_dict()


def tiny() -> Any:
    torch.manual_seed(0)
    config = PragnosiaConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        attention={"num_heads": 2, "num_key_value_heads": 1},
        feed_forward={"width": 48},
        feed_forwards=["dense", "experts"],
        experts={"num_units": 4, "unit_width": 16, "thalamus": {"num_awake": 2}},
    )
    return PragnosiaForCausalLM(config).train()


def loss(model: Any) -> float:
    batch = torch.stack(COUNTING)
    with torch.no_grad():
        return float(model(batch, labels=batch).loss)


def matrices(model: Any) -> list[tuple[nn.Module, str]]:
    return list(recovery._matrices(model))


def test_what_was_lost_comes_back(able: dict[str, torch.Tensor]) -> None:
    whole, cut, healed = tiny(), tiny(), tiny()
    for model in (whole, cut, healed):
        model.load_state_dict(able)
    with torch.no_grad():
        for owner, name in matrices(cut):
            owner.get_parameter(name).mul_(kept(owner.get_parameter(name)))
    told: list[int] = []
    recover(healed, COUNTING, 40, progress=lambda done, _: told.append(done))
    assert told == list(range(1, 41))
    assert loss(whole) < 0.5 * loss(cut)
    assert loss(healed) < 0.5 * loss(cut)
    for owner, name in matrices(healed):
        weight = owner.get_parameter(name)
        assert (weight.unflatten(-1, (-1, 4)) != 0).sum(-1).max() <= 2
        assert isinstance(weight, nn.Parameter)
        assert isinstance(owner, Linear | Bank)
    assert healed.state_dict().keys() == whole.state_dict().keys()
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.1.feed_forward.thalamus.weight"):
        assert torch.equal(healed.state_dict()[name], able[name])


def test_slopes_reach_what_is_cut() -> None:
    weight = torch.tensor([[4.0, -3.0, 2.0, 1.0]], requires_grad=True)
    used = TwoOfFour()(weight)
    assert used.tolist() == [[4, -3, 0, 0]]
    used.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    wanted = torch.tensor([[1.0, 2.0, 3.0 + recovery.DECAY * 2, 4.0 + recovery.DECAY]])
    torch.testing.assert_close(weight.grad, wanted)


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="1 step or more"):
        recover(tiny(), COUNTING, 0)
    model = tiny()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(TrainingError, match="loss of step 1"):
        recover(model, COUNTING, 3)
