"""The table of activations: values against torch, derivatives against autograd, far values against overflow."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pragnosia import kernels

GATES = {"swiglu": F.silu, "geglu": lambda g: F.gelu(g, approximate="tanh"), "reglu": F.relu}


@pytest.mark.parametrize("name", kernels.ACTIVATIONS)
def test_derivative_is_that_of_the_function(name: str) -> None:
    entry = kernels.activation_named(name)
    hidden = (8 * torch.randn(50, entry.num_parts * 6, dtype=torch.float64)).requires_grad_()
    active = entry(hidden)
    assert active.shape == (50, 6)
    grad = torch.randn_like(active)
    (wanted,) = torch.autograd.grad(active, hidden, grad)
    torch.testing.assert_close(entry.backward(hidden.detach(), grad), wanted)


@pytest.mark.parametrize("name", GATES)
def test_gate_then_value(name: str) -> None:
    hidden = torch.randn(7, 10)
    torch.testing.assert_close(kernels.activation_named(name)(hidden), GATES[name](hidden[:, :5]) * hidden[:, 5:])


def test_clamped_swiglu_stays_in_its_bounds() -> None:
    hidden = torch.tensor([[100.0, -100.0, 3.0, 100.0, -100.0, 0.5]])
    seven, three = torch.tensor(7.0), torch.tensor(3.0)
    wanted = [8 * 7 * torch.sigmoid(1.702 * seven), 0.0, 1.5 * 3 * torch.sigmoid(1.702 * three)]
    got = kernels.activation_named("clamped_swiglu")(hidden)[0]
    torch.testing.assert_close(got, torch.tensor([float(v) for v in wanted]), atol=1e-6, rtol=1e-6)


def test_drelu_is_silent_where_either_half_is_below_zero() -> None:
    hidden = torch.tensor([[1.5, -1.5, 1.5, -1.5, 0.0, 2.0, 2.0, -2.0, -2.0, 2.0]])
    entry = kernels.activation_named("drelu")
    assert entry.silences
    assert entry(hidden).tolist() == [[3.0, 0.0, 0.0, 0.0, 0.0]]
    assert entry.backward(hidden, torch.ones(1, 5)).tolist() == [[2.0, 0, 0, 0, 0, 1.5, 0, 0, 0, 0]]


@pytest.mark.parametrize("name", kernels.ACTIVATIONS)
@pytest.mark.parametrize("backend", ["cpu", None])
@pytest.mark.parametrize("tokens", [1, 40])
def test_far_values_and_numbers_that_are_none(name: str, backend: str | None, tokens: int) -> None:
    """A bank that passes its input straight to the activation, at the edges of single precision."""
    parts = kernels.activation_named(name).num_parts
    edges = torch.tensor([-1e30, -200.0, -89.0, -1e-30, 0.0, 1e-30, 89.0, 200.0, 1e4, float("nan")])
    width = edges.numel()
    up = torch.eye(width).repeat(parts, 1)[None].requires_grad_(tokens > 1)
    call = {"units": torch.zeros(tokens, 1, dtype=torch.long), "strengths": torch.ones(tokens, 1)}
    x = edges.diag()[None].expand(tokens, width, width)
    for column in range(width - 1):  # one value a time: the others are zero, and no product of theirs overflows
        row = x[:, column].contiguous()
        got = kernels.bank(row, **call, up=up, down=torch.eye(width)[None], activation=name, backend=backend)
        wanted = kernels.activation_named(name)(row.repeat(1, parts))
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-30 if "gelu" not in name else 1e-6)
    got = kernels.bank(
        edges.expand(tokens, width), **call, up=up, down=torch.eye(width)[None], activation=name, backend=backend
    )
    assert got.isnan().any()
