"""Optimisers: equal to the libraries where the libraries reach, and sensible where they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pragnosia.errors import ConfigError
from pragnosia.training.muon import Muon, orthogonalised
from pragnosia.training.optimisers import OptimiserConfig, Optimisers, kind_of


def weights(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_muon_on_a_matrix_is_torchs_muon(shape: tuple[int, ...]) -> None:
    [ours], [theirs] = weights(shape), weights(shape)
    mine = Muon([ours], lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        give_gradients([ours], step)
        give_gradients([theirs], step)
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)  # bfloat16 products, summed in another order


def test_muon_takes_each_unit_of_a_bank_by_itself() -> None:
    [bank] = weights((5, 8, 12))
    alone = [nn.Parameter(unit.detach().clone()) for unit in bank]
    together, apart = Muon([bank], lr=0.05, weight_decay=0.1), Muon(alone, lr=0.05, weight_decay=0.1)
    for step in range(3):
        give_gradients([bank], step)
        assert bank.grad is not None
        for unit, gradient in zip(alone, bank.grad, strict=True):
            unit.grad = gradient.clone()
        together.step()
        apart.step()
    torch.testing.assert_close(bank.detach(), torch.stack([unit.detach() for unit in alone]))


def test_orthogonalised_units_have_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalised(torch.randn(6, 16, 48)).float())
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_a_sleeping_unit_is_left_alone_by_muon() -> None:
    [bank] = weights((4, 6, 6))
    muon = Muon([bank], lr=0.1, weight_decay=0.1)
    give_gradients([bank], 0)
    muon.step()
    before, momentum = bank.detach().clone(), muon.state[bank]["momentum_buffer"].clone()
    give_gradients([bank], 1)
    assert bank.grad is not None
    bank.grad[2] = 0
    muon.step()
    changed = (bank.detach() != before).flatten(1).any(1)
    assert changed.tolist() == [True, True, False, True]
    assert torch.equal(muon.state[bank]["momentum_buffer"][2], momentum[2])


def named(parameters: list[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    return [(f"layer.{index}.weight", parameter) for index, parameter in enumerate(parameters)]


@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
def test_adamw_with_clipping_is_torchs(clip: float | None) -> None:
    ours, theirs = weights((6, 4), (3, 5)), weights((6, 4), (3, 5))
    mine = Optimisers(named(ours), set(), OptimiserConfig(learning_rate=0.01, weight_decay=0.1, clip=clip))
    reference = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        norm = mine.step(1.0)
        expected = nn.utils.clip_grad_norm_(theirs, clip or float("inf"))
        reference.step()
        torch.testing.assert_close(norm, expected)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("model.layers.0.mixer.q_proj.weight", (4, 4), "matrices"),
        ("model.layers.0.feed_forward.bank.up", (2, 4, 4), "matrices"),
        ("model.layers.0.feed_forward.bank.up_bias", (2, 4), "vectors"),
        ("model.layers.0.mixer_norm.weight", (4,), "vectors"),
        ("model.layers.0.feed_forward.thalamus.weight", (2, 4), "router"),
        ("model.layers.0.feed_forward.thalamus.bias", (2,), "router"),
        ("model.layers.0.working_memory.slots.salience.weight", (1, 4), "router"),
    ],
)
def test_kinds(name: str, shape: tuple[int, ...], kind: str) -> None:
    assert kind_of(name, torch.empty(shape), set()) == kind


def every_kind() -> tuple[dict[str, nn.Parameter], set[int]]:
    shapes = {
        "embed_tokens.weight": (10, 4),
        "layers.0.mixer.q_proj.weight": (4, 4),
        "layers.0.feed_forward.bank.up": (3, 4, 4),
        "layers.0.feed_forward.thalamus.weight": (3, 4),
        "norm.weight": (4,),
    }
    parameters = dict(zip(shapes, weights(*shapes.values()), strict=True))
    return parameters, {id(parameters["embed_tokens.weight"])}


def test_only_matrices_decay_and_routers_have_their_own_rate() -> None:
    parameters, embedded = every_kind()
    config = OptimiserConfig(learning_rate=0.01, weight_decay=0.5, router_multiplier=3.0)
    groups = {group["kind"]: group for group in Optimisers(parameters.items(), embedded, config).groups}
    assert {kind: group["weight_decay"] for kind, group in groups.items()} == {
        "matrices": 0.5,
        "router": 0.0,
        "embeddings": 0.0,
        "vectors": 0.0,
    }
    assert groups["router"]["peak"] == pytest.approx(0.03)
    assert groups["matrices"]["peak"] == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_state_goes_out_and_in_bit_for_bit(name: Any) -> None:
    config = OptimiserConfig(name=name, learning_rate=0.01)
    (ours, ours_embedded), (theirs, theirs_embedded) = every_kind(), every_kind()
    one = Optimisers(ours.items(), ours_embedded, config)
    give_gradients(list(ours.values()), 0)
    one.step(1.0)
    for mine, other in zip(ours.values(), theirs.values(), strict=True):
        other.data.copy_(mine.data)
    two = Optimisers(theirs.items(), theirs_embedded, config)
    saved: dict[str, Tensor] = {key: value.clone() for key, value in one.state().items()}
    two.load_state(saved)
    for step in range(1, 4):
        for optimisers, parameters in ((one, ours), (two, theirs)):
            give_gradients(list(parameters.values()), step)
            optimisers.step(0.5)
    for key, mine in ours.items():
        assert torch.equal(mine, theirs[key]), key


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"learning_rate": 0}, "learning_rate"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"beta2": 1.0}, "beta2"),
        ({"clip": 0.0}, "clip"),
    ],
)
def test_impossible_options(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        OptimiserConfig(**bad)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no parameter"):
        Optimisers([], set(), OptimiserConfig())


def test_moments_of_8_bits_take_the_steps_of_adamw() -> None:
    moved = []
    for name in ("adamw", "adamw8bit"):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(3, 1000))  # no whole number of blocks
        start = weight.detach().clone()
        config = OptimiserConfig(name=name, learning_rate=1e-2, weight_decay=0.1)  # type: ignore[arg-type]
        optimisers = Optimisers([("weight", weight)], set(), config)
        for _ in range(30):
            weight.grad = torch.randn_like(weight) * torch.logspace(-6, 0, 1000) + 0.1 * weight.detach()
            optimisers.step(1.0)
        moved.append(weight.detach() - start)
    assert (moved[0] - moved[1]).norm() < 0.1 * moved[0].norm()
    state = optimisers.state()
    assert sum(value.nbytes for value in state.values()) < 2.1 * 3000 + 200
    assert {value.dtype for value in state.values()} == {torch.float8_e4m3fn, torch.float32}
