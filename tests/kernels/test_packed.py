"""The linear layer on packed rows: compiled for few rows, by blocks for many, in plain torch without a compiler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lesser_processors import product_for
from torch import Tensor

from pragnosia import kernels
from pragnosia.kernels import compiled
from pragnosia.kernels import packed as products
from pragnosia.kernels.formats import FORMATS as ALL
from pragnosia.kernels.formats import pack, unpack

FORMATS = {name: entry for name, entry in ALL.items() if not entry.pruned}  # those: test_pruned.py
needs_library = pytest.mark.skipif(
    compiled.native_library() is None, reason=f"compiled kernels are {kernels.native_status()}"
)


def rounded(x: Tensor) -> Tensor:
    """x as the compiled product sees it: 8 bits, a scale per group of 32."""
    groups = torch.nn.functional.pad(x.float(), (0, -x.shape[-1] % 32)).unflatten(-1, (-1, 32))
    most = groups.abs().amax(-1, keepdim=True)
    values = (groups * (127 / most)).round() * (most / 127)
    return values.nan_to_num(0.0).flatten(-2)[..., : x.shape[-1]].double()


def distance(got: Tensor, x: Tensor, weights: Tensor, bias: Tensor | None = None) -> float:
    """The greatest error, in terms of what the summands' sizes add up to."""
    wanted = x.double() @ weights.double().t() + (0 if bias is None else bias.double())
    sizes = x.double().abs() @ weights.double().abs().t() + (1e-9 if bias is None else bias.double().abs())
    return float(((got.double() - wanted).abs() / sizes).max())


@needs_library
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("outs", "depth"), [(1, 1), (3, 33), (6, 200), (17, 768), (130, 2080)])
def test_few_rows(name: str, outs: int, depth: int) -> None:
    weights, bias = torch.randn(outs, depth), torch.randn(outs)
    packed = pack(weights, name)
    values = unpack(packed, depth, name)
    for rows in range(1, 10):
        x = torch.randn(rows, depth)
        seen = rounded(x) if FORMATS[name].group and rows < products.FEW_ROWS else x
        got = kernels.packed_linear(x, packed, depth, name, bias)
        assert distance(got, seen, values, bias) < 2e-4  # a tie may round either way
        in_halves = kernels.packed_linear(x.bfloat16(), packed, depth, name)
        assert in_halves.dtype == torch.bfloat16
        assert distance(in_halves, x.bfloat16(), values) < 0.01


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_rows(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SCRATCH", 300 * 70)  # blocks of 70 rows
    weights, x, bias = torch.randn(150, 300), torch.randn(7, 11, 300, dtype=dtype), torch.randn(150)
    packed = pack(weights, name)
    got = kernels.packed_linear(x, packed, 300, name, bias)
    assert got.shape == (7, 11, 150)
    assert got.dtype == dtype
    assert distance(got.flatten(0, 1), x.flatten(0, 1), unpack(packed, 300, name), bias) < (
        1e-5 if dtype == torch.float32 else 0.02
    )


@pytest.mark.parametrize("name", FORMATS)
def test_without_a_compiler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "native_library", lambda: None)
    weights, x = torch.randn(21, 150), torch.randn(2, 150)
    packed = pack(weights, name)
    assert distance(kernels.packed_linear(x, packed, 150, name), x, unpack(packed, 150, name)) < 1e-5


@needs_library
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpacks_the_same_values(name: str, dtype: torch.dtype) -> None:
    for depth in (1, 100, 128, 500):
        packed = pack(torch.distributions.StudentT(3.0).sample((9, depth)), name)
        out = products.unpacked_into(torch.empty(9, depth, dtype=dtype), packed, depth, FORMATS[name])
        assert torch.equal(out, unpack(packed, depth, name, dtype))


@needs_library
@pytest.mark.parametrize("name", FORMATS)
def test_inputs_unlike_others(name: str) -> None:
    packed = pack(torch.randn(8, 256), name)
    assert not kernels.packed_linear(torch.zeros(1, 256), packed, 256, name).any()
    for wrong in (float("nan"), float("inf")):
        x = torch.randn(2, 256)
        x[1, 77] = wrong
        y = kernels.packed_linear(x, packed, 256, name)
        assert y[0].isfinite().all()
        assert not y[1].isfinite().any()
    outlier = torch.randn(1, 256)
    outlier[0, 5] = 1000.0
    values = unpack(packed, 256, name)
    assert (
        distance(kernels.packed_linear(outlier, packed, 256, name), outlier, values) < 0.15
    )  # its 31 neighbours are lost


@needs_library
def test_rounding_of_the_input_is_small() -> None:
    """The error that 8-bit inputs add to an output, beside the 7.5 % of int4 itself."""
    weights, x = torch.randn(512, 2048), torch.randn(4, 2048)
    packed = pack(weights, "int4")
    exact = x.double() @ unpack(packed, 2048, "int4").double().t()
    got = kernels.packed_linear(x, packed, 2048, "int4").double()
    assert (got - exact).norm() / exact.norm() < 0.007


@pytest.mark.parametrize("name", FORMATS)
def test_rows_that_lie_anywhere(name: str) -> None:
    """A slice of a mapped file begins at any byte; a slice with steps is no matrix of rows."""
    packed, x = pack(torch.randn(12, 200), name), torch.randn(2, 200)
    wanted = kernels.packed_linear(x, packed, 200, name)
    moved = torch.empty(packed.numel() + 4, dtype=torch.uint8)[4:].view_as(packed).copy_(packed)
    assert torch.equal(kernels.packed_linear(x, moved, 200, name), wanted)
    assert torch.equal(kernels.packed_linear(x, packed[4:8], 200, name), wanted[:, 4:8])
    assert distance(kernels.packed_linear(x, packed[::2], 200, name), x, unpack(packed, 200, name)[::2]) < 1e-5


def test_gradients_reach_the_input() -> None:
    x, bias = torch.randn(3, 64, requires_grad=True), torch.zeros(40, requires_grad=True)
    packed = pack(torch.randn(40, 64), "int4")
    kernels.packed_linear(x, packed, 64, "int4", bias).sum().backward()
    torch.testing.assert_close(x.grad, unpack(packed, 64, "int4").sum(0).expand(3, 64))
    assert bias.grad is not None


def test_no_rows_and_shapes_that_do_not_fit() -> None:
    packed = pack(torch.randn(40, 64), "int4")
    assert kernels.packed_linear(torch.randn(0, 64), packed, 64, "int4").shape == (0, 40)
    assert kernels.packed_linear(torch.randn(64), packed, 64, "int4").shape == (40,)
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 64\)"):
        kernels.packed_linear(torch.randn(1, 63), packed, 64, "int4")
    with pytest.raises(ValueError, match="expected torch"):
        kernels.packed_linear(torch.randn(1, 64), packed[:, :8], 64, "int4")


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("processor", ["x86-64", "x86-64-v3", "skylake-avx512", "native"])
def test_lesser_processors(processor: str, tmp_path: Path) -> None:
    """The code for narrower registers, where this machine runs it and its compiler knows the name."""
    features = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if any(
        needed not in features for needed in {"x86-64-v3": ["avx2"], "skylake-avx512": ["avx512bw"]}.get(processor, [])
    ):
        pytest.skip(f"this processor is no {processor}")
    product = product_for(processor, tmp_path)
    for name, entry in FORMATS.items():
        packed, x, y = pack(torch.randn(7, 700), name), torch.randn(6, 700), torch.empty(6, 7)
        product(entry.code, x.data_ptr(), packed.data_ptr(), packed.shape[1], 6, 7, 700, y.data_ptr())
        assert distance(y, rounded(x) if entry.group else x, unpack(packed, 700, name)) < 2e-4
