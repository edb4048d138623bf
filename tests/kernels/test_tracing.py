"""What torch.compile is given: a decode step's bank and linear layers in one graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pragnosia import kernels


def test_a_decode_step_traces_whole() -> None:
    units, strengths = torch.tensor([[2, 0], [-1, 1]]), torch.rand(2, 2)
    up, down, head = torch.randn(3, 16, 12), torch.randn(3, 12, 8), torch.randn(300, 12)

    def step(x: Tensor) -> Tensor:
        return kernels.linear(kernels.bank(x, units, strengths, up, down, activation="swiglu"), head)

    x = torch.randn(2, 12)
    with torch.no_grad():
        whole = torch.compile(step, backend="eager", fullgraph=True)(x)
        torch.testing.assert_close(whole, step(x), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of the tracer itself, where the graph breaks
def test_a_training_step_survives_tracing() -> None:
    up, down = torch.randn(3, 16, 12, requires_grad=True), torch.randn(3, 12, 8, requires_grad=True)
    x, units, strengths = torch.randn(50, 12), torch.randint(-1, 3, (50, 2)), torch.rand(50, 2)

    def step(x: Tensor) -> Tensor:
        return kernels.bank(x, units, strengths, up, down, activation="swiglu").square().mean()

    traced = torch.compile(step, backend="eager")(x)
    torch.testing.assert_close(traced, step(x))
    for ours, plain in zip(
        torch.autograd.grad(traced, (up, down)), torch.autograd.grad(step(x), (up, down)), strict=True
    ):
        torch.testing.assert_close(ours, plain)
