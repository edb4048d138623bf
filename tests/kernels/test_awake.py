"""The product that leaves the weights of sleeping inputs unread, against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pragnosia import kernels
from pragnosia.kernels import awake

needs_library = pytest.mark.skipif(
    kernels.native_library() is None, reason=f"compiled kernels are {kernels.native_status()}"
)


def test_only_the_order_in_memory_changes() -> None:
    weight = torch.randn(7, 5)
    lying = awake.by_input(weight)
    assert torch.equal(lying, weight)
    assert lying.stride() == (1, 7)
    assert awake.lies_by_input(lying)
    assert awake.by_input(lying).data_ptr() == lying.data_ptr()
    for other in (weight, torch.randn(1, 5), torch.randn(5, 1), torch.randn(2, 3, 4), weight[:, ::2]):
        assert not awake.lies_by_input(other)


@needs_library
@pytest.mark.parametrize(("outs", "depth"), [(2, 2), (37, 50), (64, 33), (1025, 70), (2200, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.97, 1.0])
def test_like_torch(outs: int, depth: int, dtype: torch.dtype, share: float) -> None:
    x, weight = torch.randn(1, 1, depth).to(dtype), awake.by_input(torch.randn(outs, depth).to(dtype))
    x[torch.rand_like(x, dtype=torch.float32) < share] = 0
    for bias in (None, torch.randn(outs).to(dtype)):
        assert awake.supports(x, weight)
        got, wanted = kernels.linear(x, weight, bias), F.linear(x.double(), weight.double())
        wanted = wanted if bias is None else wanted + bias.double()
        assert got.shape == (1, 1, outs)
        assert got.dtype is dtype
        torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=1e-5 if dtype is torch.float32 else 5e-3)


@needs_library
@pytest.mark.parametrize("threads", [1, 3])
def test_weights_of_who_sleeps_are_not_read(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, weight = torch.randn(300), torch.randn(700, 300)
    x[::2] = 0
    wanted = F.linear(x, weight)
    weight[:, ::2] = float("nan")
    torch.testing.assert_close(kernels.linear(x, awake.by_input(weight)), wanted, atol=1e-4, rtol=1e-4)


@needs_library
def test_what_is_no_number_is_awake() -> None:
    x = torch.zeros(1, 40)
    x[0, 7] = float("nan")
    assert not kernels.linear(x, awake.by_input(torch.randn(50, 40))).isfinite().any()


def test_elsewhere_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = awake.by_input(torch.randn(90, 30))
    x = torch.randn(1, 30, requires_grad=True)
    assert not awake.supports(x, weight)
    kernels.linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0)[None])
    monkeypatch.setattr(awake, "native_library", lambda: None)
    few = torch.randn(3, 30)
    torch.testing.assert_close(kernels.linear(few, weight), F.linear(few, weight.contiguous()))
