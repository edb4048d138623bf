"""The linear layer of a decode step against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pragnosia import kernels
from pragnosia.kernels import rows as single_rows


@pytest.mark.parametrize("rows", [(), (1,), (2, 2), (1, 1), (3,), (7,), (0,)])
@pytest.mark.parametrize(("outs", "depth"), [(512, 64), (130, 200), (259, 133), (4, 4)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_like_torch(rows: tuple[int, ...], outs: int, depth: int, biased: bool, dtype: torch.dtype) -> None:
    x, weight = torch.randn(*rows, depth).to(dtype), torch.randn(outs, depth).to(dtype)
    bias = torch.randn(outs).to(dtype) if biased else None
    got, wanted = (
        kernels.linear(x, weight, bias),
        F.linear(x.float(), weight.float(), None if bias is None else bias.float()),
    )
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), wanted, atol=1e-4 if dtype == torch.float32 else 0.2, rtol=1e-2)


def test_takes_the_compiled_path_only_where_it_may() -> None:
    weight = torch.randn(256, 64).bfloat16()
    x = torch.randn(1, 64).bfloat16()
    if not single_rows.supports_losses(x):
        pytest.skip(f"compiled kernels are {kernels.native_status()}")
    assert single_rows.supports_few(x, weight)
    assert not single_rows.supports_few(x.requires_grad_(), weight)
    with torch.no_grad():
        assert single_rows.supports_few(x, weight)
        assert not single_rows.supports_few(x.float(), weight)
        assert not single_rows.supports_few(x.expand(5, 64), weight)
        assert not single_rows.supports_few(x, weight.t().contiguous().t())
        assert not single_rows.supports_few(x[:, :32], weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not single_rows.supports_few(x, weight)


def test_gradients_go_through() -> None:
    x = torch.randn(1, 64, requires_grad=True)
    weight = torch.randn(512, 64, requires_grad=True)
    kernels.linear(x, weight).sum().backward()
    # exact sums of 512 numbers, of which torch's product may add up single ones in any order, by processor
    exact = weight.detach().double().sum(0)[None].float()
    rounding = 512**0.5 * torch.finfo(torch.float32).eps * exact.abs().max().item()
    torch.testing.assert_close(x.grad, exact, rtol=0, atol=rounding)


def test_shapes_that_do_not_fit_are_torchs_error() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        kernels.linear(torch.randn(1, 63), torch.randn(512, 64))
