"""The compiled norm is torch's, forward and backward, in every mixture of number types."""

from __future__ import annotations

import pytest
import torch

from pragnosia import kernels

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
FP32, BF16 = torch.float32, torch.bfloat16
MIXTURES = [(FP32, FP32, FP32), (FP32, FP32, BF16), (BF16, BF16, BF16), (BF16, FP32, BF16)]


@pytest.mark.parametrize("shape", [(1, 7), (3, 5, 64), (400, 70), (0, 8)], ids=str)
@pytest.mark.parametrize(("x_type", "weight_type", "out_type"), MIXTURES)
def test_as_torch_has_it(
    shape: tuple[int, ...], x_type: torch.dtype, weight_type: torch.dtype, out_type: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).to(x_type).requires_grad_()
    weight = torch.randn(shape[-1]).to(weight_type).requires_grad_()
    pull = torch.randn(shape).to(out_type)
    exact_x, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (x, weight))
    expected = torch.nn.functional.rms_norm(exact_x, weight.shape, exact_weight, 1e-5)
    wanted = torch.autograd.grad((expected * pull.double()).sum(), (exact_x, exact_weight))
    got = kernels.rms_norm(x, weight, 1e-5, out_type)
    slopes = torch.autograd.grad(got, (x, weight), pull)
    assert got.dtype is out_type
    with torch.no_grad():
        assert torch.equal(kernels.rms_norm(x, weight, 1e-5, out_type), got)
    coarse = BF16 in (x_type, weight_type, out_type)
    close = {"atol": 3e-2, "rtol": 2e-2} if coarse else {"atol": 1e-4, "rtol": 1e-4}
    for ours, exact in zip((got, *slopes), (expected, *wanted), strict=True):
        torch.testing.assert_close(ours.double(), exact, **close)
    assert [slope.dtype for slope in slopes] == [x_type, weight_type]


def test_rows_that_do_not_lie_in_order() -> None:
    x = torch.randn(6, 4, 8).transpose(0, 1)
    expected = torch.nn.functional.rms_norm(x, (8,), torch.ones(8), 1e-5)
    torch.testing.assert_close(kernels.rms_norm(x, torch.ones(8), 1e-5), expected)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_a_frozen_side(frozen: str) -> None:
    x, weight = torch.randn(5, 8).requires_grad_(frozen != "x"), torch.ones(8).requires_grad_(frozen != "weight")
    kernels.rms_norm(x, weight, 1e-5).square().sum().backward()
    assert (x.grad is None) == (frozen == "x")
    assert (weight.grad is None) == (frozen == "weight")
