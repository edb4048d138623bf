"""Triton programs of long-term memory against plain torch, in Triton's interpreter or on a GPU.

Run them in the interpreter, where triton is installed: TRITON_INTERPRET=1 pytest tests/kernels/test_triton_recall.py
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pragnosia.kernels import triton, triton_recall
from pragnosia.kernels.recalling import read, step_rows

INTERPRETED = triton.interpreted() and triton.supports(torch.zeros(1))
DEVICE = "cpu" if INTERPRETED else "cuda"
HERE = () if INTERPRETED else pytest.mark.gpu


@pytest.mark.parametrize("width", [pytest.param(width, marks=HERE) for width in (17, 600)])
def test_reading_and_its_slopes(width: int) -> None:
    table = torch.randn(20, width, device=DEVICE, requires_grad=True)
    rows = torch.randint(0, 9, (6, 8), device=DEVICE)  # rows named twice, and rows not named
    strengths = torch.rand(6, 8, device=DEVICE, requires_grad=True)
    target = torch.randn(6, width, device=DEVICE)
    y = read(table, rows, strengths)
    (y * target).sum().backward()
    assert table.grad is not None
    ours, mine = table.grad, strengths.grad
    assert ours.coalesce().indices().flatten().tolist() == sorted(set(rows.flatten().tolist()))
    plain, shares = table.detach().clone().requires_grad_(), strengths.detach().clone().requires_grad_()
    expected = torch.einsum("ta,tad->td", shares, plain[rows])
    (expected * target).sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(ours.to_dense(), plain.grad)
    torch.testing.assert_close(mine, shares.grad)
    with torch.no_grad():
        assert torch.equal(read(table, rows, strengths), y)


@pytest.mark.parametrize("steps", [pytest.param(3, marks=HERE)])
def test_rows_learn_as_in_plain_torch(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr("pragnosia.kernels.triton_recall.supports", lambda _: False)
            monkeypatch.setattr("pragnosia.kernels.recalling.native_library", lambda: None)
        torch.manual_seed(1)
        table = torch.randn(9, 33, device=DEVICE)
        first, second = torch.zeros(9, 33, dtype=torch.bfloat16, device=DEVICE), torch.zeros(9, device=DEVICE)
        recalled = torch.zeros(9, dtype=torch.int32, device=DEVICE)
        for _ in range(steps):
            named, slopes = torch.randint(0, 6, (1, 7), device=DEVICE), torch.randn(7, 33, device=DEVICE)
            grad = torch.sparse_coo_tensor(named, slopes, (9, 33), check_invariants=False)
            step_rows(table, grad, first, second, recalled, rate=0.1, betas=(0.9, 0.95), epsilon=1e-8)
        learned.append((table, first.float(), second, recalled))
    for ours, theirs in zip(*learned, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


def test_slots_are_grouped_by_row() -> None:
    named, order, bounds = triton_recall.grouped(torch.tensor([[3, 1], [3, 0]]))
    assert named.tolist() == [0, 1, 3]
    assert order.tolist() == [3, 1, 0, 2]
    assert bounds.tolist() == [0, 1, 2, 4]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_they_compile_for_a_gpu_that_is_not_here(compiled: Callable[[str, int], int], capability: int) -> None:
    assert compiled(_COMPILE, capability) == 4


_COMPILE = """
from pragnosia.kernels import triton_recall_programs as programs

KINDS = {"table": "*bf16", "first": "*bf16", "order": "*i32", "bounds": "*i32", "recalled": "*i32"}
KINDS |= {"rows": "*i64", "named": "*i64"}
KINDS |= {name: "*fp32" for name in ("strengths", "out", "grad", "values", "second")}
KINDS |= {name: "fp32" for name in ("rate", "beta1", "beta2", "epsilon")}
for name in ("read_rows", "slopes", "row_slopes", "step_rows"):
    build(getattr(programs, name), {"BLOCK": 512}, KINDS)
"""
