"""Few tokens of narrow units on a GPU: slot by slot, against the definition, in Triton's interpreter or on a GPU.

Run them in the interpreter, where triton is installed: TRITON_INTERPRET=1 pytest tests/kernels/test_triton_few.py
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pragnosia import kernels
from pragnosia.kernels import reference, triton

INTERPRETED = triton.interpreted() and triton.supports(torch.zeros(1))
DEVICE = "cpu" if INTERPRETED else "cuda"
HERE = () if INTERPRETED else pytest.mark.gpu


def case(tokens: int, width: int, neurons: int, activation: str, *, biased: bool) -> tuple[torch.Tensor | None, ...]:
    """Nine units, up to seven awake, some slots of which wake nobody."""
    parts = kernels.activation_named(activation).num_parts
    units = torch.rand(tokens, 9).argsort(1)[:, :7]
    units[torch.rand(tokens, 7) < 0.2] = -1
    biases = (torch.randn(9, parts * neurons), torch.randn(9, width)) if biased else (None, None)
    given = (torch.randn(tokens, width), units, torch.rand(tokens, 7), torch.randn(9, parts * neurons, width))
    return tuple(None if t is None else t.to(DEVICE) for t in (*given, torch.randn(9, width, neurons), *biases))


@pytest.mark.parametrize("tokens", [pytest.param(tokens, marks=HERE) for tokens in (1, 4)])
@pytest.mark.parametrize(("width", "neurons"), [(16, 8), (41, 1), (130, 17), (24, 64)])
@pytest.mark.parametrize(("activation", "biased"), [("relu2", False), ("drelu", True), ("swiglu", True)])
def test_as_defined(
    tokens: int, width: int, neurons: int, activation: str, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "_plan", None)  # nothing may be sorted
    given = case(tokens, width, neurons, activation, biased=biased)
    got = kernels.bank(*given, activation=activation, backend="triton")  # type: ignore[arg-type]
    exact = [None if t is None else t.double() if t.is_floating_point() else t for t in given]
    expected = reference.bank(*exact, kernels.activation_named(activation))  # type: ignore[arg-type]
    assert float((got.double() - expected).norm() / expected.norm()) < 1e-6
    again = kernels.bank(*given, activation=activation, backend="triton")  # type: ignore[arg-type]
    assert torch.equal(got, again)


@pytest.mark.parametrize("tokens", [pytest.param(tokens, marks=HERE) for tokens in (0, 2)])
def test_nobody_says_nothing(tokens: int) -> None:
    x, units, *rest = case(tokens, 16, 8, "relu2", biased=True)
    assert units is not None
    y = kernels.bank(x, torch.full_like(units, -1), *rest, activation="relu2", backend="triton")  # type: ignore[arg-type]
    assert y.shape == (tokens, 16)
    assert not y.any()


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_they_compile_for_a_gpu_that_is_not_here(compiled: Callable[[str, int], int], capability: int) -> None:
    assert compiled(_COMPILE, capability) == 8


_COMPILE = """
from pragnosia.kernels import triton_kernels as programs

KINDS = {name: "*bf16" for name in ("x", "up", "down", "bias", "out")}
KINDS |= {"units": "*i64", "strengths": "*fp32", "active": "*fp32"}
FIXED = {"few_up": {"BK": 512}, "few_down": {"BA": 32, "BD": 16}}
for name, sizes in FIXED.items():
    for code, gated in ((0, True), (3, False)):
        for biased in (True, False):
            given = {"code": code, "gated": gated} if name == "few_up" else {}
            build(getattr(programs, name), {**sizes, **given, "biased": biased, "BN": 8}, KINDS)
"""
