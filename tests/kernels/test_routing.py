"""The compiled router chooses, weighs and learns as its plain definition does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pragnosia import kernels
from pragnosia.kernels import reference

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
WIDTH = 20


def routed(how: dict[str, Any], tensors: dict[str, Tensor | None], plain: bool) -> tuple[Tensor, Tensor, Tensor]:
    if not plain:
        return kernels.route(**tensors, **how)
    x, weight = tensors["x"], tensors["weight"]
    assert x is not None
    assert weight is not None
    logits = torch.nn.functional.linear(x, weight, tensors["bias"]) + tensors["steering"]
    return reference.choose(logits, tensors["balance"], **how)


def material(units: int, biased: bool, rows: int = 37) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(units)
    normal = {"generator": generator}
    steering = torch.randn(units, **normal)
    steering[units // 2] = float("-inf")
    return {
        "x": torch.randn(rows, WIDTH, **normal).requires_grad_(),
        "weight": torch.randn(units, WIDTH, **normal).requires_grad_(),
        "bias": torch.randn(units, **normal).requires_grad_() if biased else None,
        "steering": steering,
        "balance": 0.3 * torch.randn(units, **normal) if biased else None,
    }


@pytest.mark.parametrize("asked", ["strengths", "scores", "both"])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("squash", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("units", "awake", "biased"), [(3, 3, True), (16, 2, False), (70, 9, True), (900, 60, True)])
def test_as_defined(units: int, awake: int, biased: bool, squash: str, renormalise: bool, asked: str) -> None:
    how: dict[str, Any] = {"awake": awake, "squash": squash, "renormalise": renormalise, "scale": 1.7}
    tensors = material(units, biased)
    learners = [tensor for tensor in tensors.values() if tensor is not None and tensor.requires_grad]
    results, slopes = [], []
    for plain in (True, False):
        woken, strengths, scores = routed(how, tensors, plain)
        pull = torch.linspace(-1, 1, strengths.numel()).view_as(strengths)
        push = torch.linspace(1, -1, scores.numel()).view_as(scores)
        aims = {"strengths": (strengths * pull).sum(), "scores": (scores * push).sum()}
        aim = aims["strengths"] + aims["scores"] if asked == "both" else aims[asked]
        slopes.append(torch.autograd.grad(aim, learners))
        results.append((woken, strengths, scores))
    assert torch.equal(results[0][0], results[1][0])
    assert units == 3 or bool((results[0][0] >= 0).all()), "only three units, one silenced, leave a slot empty"
    for expected, got in zip((*results[0][1:], *slopes[0]), (*results[1][1:], *slopes[1]), strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("squash", ["softmax", "sigmoid"])
def test_all_silenced(squash: str) -> None:
    tensors = material(6, biased=True)
    tensors["steering"] = torch.full((6,), float("-inf"))
    units, strengths, scores = kernels.route(**tensors, awake=2, squash=squash, renormalise=True, scale=1.0)
    assert bool((units == -1).all())
    assert not strengths.any()
    assert not scores.any()
    strengths.sum().backward()
    assert tensors["weight"] is not None
    assert tensors["weight"].grad is not None
    assert not tensors["weight"].grad.any()


def test_an_unknown_squash() -> None:
    with pytest.raises(ValueError, match=r"unknown squash 'tanh'\. Available: softmax, sigmoid"):
        kernels.route(**material(6, biased=True), awake=2, squash="tanh", renormalise=True, scale=1.0)


def test_bfloat16_models_take_the_compiled_router(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the plain definition ran")

    monkeypatch.setattr("pragnosia.kernels.reference.choose", refused)
    tensors = {name: None if t is None else t.detach().bfloat16() for name, t in material(16, biased=True).items()}
    how: dict[str, Any] = {"awake": 2, "squash": "softmax", "renormalise": True, "scale": 1.0}
    units, strengths, scores = kernels.route(**tensors, **how)
    assert units.shape == (37, 2)
    assert strengths.dtype is scores.dtype is torch.float32


def test_a_bias_alone_learns() -> None:
    tensors = {name: None if t is None else t.detach() for name, t in material(6, biased=True).items()}
    assert tensors["bias"] is not None
    tensors["bias"].requires_grad_()
    _, strengths, _ = kernels.route(**tensors, awake=2, squash="softmax", renormalise=True, scale=1.0)
    (strengths[:, 0] ** 2).sum().backward()
    assert tensors["bias"].grad is not None
    assert tensors["bias"].grad.any()
