"""The fused last layer against logits and cross-entropy done apart."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pragnosia import kernels
from pragnosia.kernels import cross_entropy, rows


def make(N: int, D: int, V: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(N, D).to(dtype).requires_grad_()
    weight = (torch.randn(V, D) / D**0.5).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, V, (N,))


def apart(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    return F.cross_entropy(hidden.double() @ weight.double().t(), targets, ignore_index=ignore_index)


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test twice: rows of logits by the compiled kernel, and by torch."""
    if request.param == "torch":
        monkeypatch.setattr(rows, "supports_losses", lambda logits: False)
    elif not rows.supports_losses(torch.zeros(1, 1)):
        pytest.skip(f"compiled kernels are {kernels.native_status()}")


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 1 << 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradients(chunk_bytes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", chunk_bytes)
    hidden, weight, targets = make(23, 12, 37, dtype)
    targets[[0, 7, 22]] = -100
    got, wanted = kernels.linear_cross_entropy(hidden, weight, targets), apart(hidden, weight, targets)
    torch.testing.assert_close(got, wanted.to(got.dtype))
    for ours, theirs in zip(
        torch.autograd.grad(3 * got, (hidden, weight)), torch.autograd.grad(3 * wanted, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_autocast_keeps_the_masters_dtype() -> None:
    hidden, weight, targets = make(40, 16, 50)
    with torch.autocast("cpu", torch.bfloat16):
        loss = kernels.linear_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float32
    wanted = apart(hidden, weight, targets)
    torch.testing.assert_close(loss, wanted.float(), atol=2e-2, rtol=0)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(wanted, (hidden, weight)), strict=True
    ):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 2e-2 * theirs.norm()


def test_a_tied_weight_gathers_both_gradients() -> None:
    _, weight, targets = make(11, 8, 20)
    tokens = torch.randint(0, 20, (11,))
    kernels.linear_cross_entropy(F.embedding(tokens, weight), weight, targets).backward()
    ours, weight.grad = weight.grad, None
    apart(F.embedding(tokens, weight), weight, targets).backward()
    torch.testing.assert_close(ours, weight.grad)


def test_without_gradients() -> None:
    hidden, weight, targets = make(9, 6, 15)
    with torch.no_grad():
        loss = kernels.linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, apart(hidden, weight, targets).float())


def test_twice_through_one_graph() -> None:
    hidden, weight, targets = make(9, 6, 15)
    loss = kernels.linear_cross_entropy(hidden, weight, targets)
    first = torch.autograd.grad(loss, weight, retain_graph=True)[0].clone()
    (second,) = torch.autograd.grad(2 * loss, weight)
    torch.testing.assert_close(second, 2 * first)


def test_no_target_counts() -> None:
    hidden, weight, targets = make(4, 6, 15)
    assert kernels.linear_cross_entropy(hidden, weight, torch.full_like(targets, -100)).isnan()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_not_hidden(bad: float) -> None:
    hidden, weight, targets = make(40, 6, 100)
    with torch.no_grad():
        hidden[3, 2] = bad
    loss = kernels.linear_cross_entropy(hidden, weight, targets)
    assert not loss.isfinite()


def test_far_logits_do_not_overflow() -> None:
    hidden, weight, targets = make(20, 8, 30)
    far = (hidden * 200).detach().requires_grad_()
    loss, wanted = kernels.linear_cross_entropy(far, weight, targets), apart(far, weight, targets)
    torch.testing.assert_close(loss, wanted.float(), rtol=1e-5, atol=1e-4)


def test_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 64 << 10)
    hidden, weight, targets = make(256, 8, 2048)
    largest = 0
    product = torch.mm

    def watched(*args: Tensor, **kwargs: Tensor) -> Tensor:
        nonlocal largest
        result = product(*args, **kwargs)
        largest = max(largest, result.nbytes)
        return result

    monkeypatch.setattr(torch, "mm", watched)
    kernels.linear_cross_entropy(hidden, weight, targets).backward()
    assert largest <= 64 << 10  # all logits would take 2 MiB


def test_bad_input() -> None:
    hidden, weight, targets = make(4, 6, 15)
    with pytest.raises(ValueError, match=r"hidden has shape .*expected"):
        kernels.linear_cross_entropy(hidden[:3], weight, targets)
    with pytest.raises((ValueError, RuntimeError), match=r"15|out of bounds"):
        kernels.linear_cross_entropy(hidden, weight, torch.full_like(targets, 15))
