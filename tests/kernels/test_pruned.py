"""2:4 rows: which weights stay, what comes back, and products that never see the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lesser_processors import product_for
from torch import Tensor

from pragnosia import kernels
from pragnosia.kernels import compiled, pruned
from pragnosia.kernels import packed as products
from pragnosia.kernels.formats import FORMATS, pack, unpack

needs_library = pytest.mark.skipif(
    compiled.native_library() is None, reason=f"compiled kernels are {kernels.native_status()}"
)
NAMES = ["bf16-2:4", "int8-2:4"]


def distance(got: Tensor, x: Tensor, weights: Tensor, bias: Tensor | None = None) -> float:
    """The greatest error, in terms of what the summands' sizes add up to."""
    wanted = x.double() @ weights.double().t() + (0 if bias is None else bias.double())
    sizes = x.double().abs() @ weights.double().abs().t() + (1e-9 if bias is None else bias.double().abs())
    return float(((got.double() - wanted).abs() / sizes).max())


def test_the_two_largest_of_four_stay() -> None:
    weights = torch.randn(50, 64)
    mask = pruned.kept(weights)
    fours, chosen = weights.abs().unflatten(1, (-1, 4)), mask.unflatten(1, (-1, 4))
    assert torch.equal(chosen.sum(-1), torch.full((50, 16), 2))
    two = fours.topk(2).values.amin(-1, keepdim=True)
    assert torch.equal(chosen, fours >= two)
    equal = pruned.kept(torch.ones(1, 8))
    assert equal.tolist() == [[True, True, False, False] * 2]


def test_importance_chooses() -> None:
    weights, importance = torch.ones(3, 8), torch.tensor([1.0, 2, 3, 4, 4, 3, 2, 1])
    assert pruned.kept(weights, importance)[0].nonzero().flatten().tolist() == [2, 3, 4, 5]
    packed = pack(weights, "bf16-2:4", importance)
    assert unpack(packed, 8, "bf16-2:4")[1].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("depth", [4, 32, 36, 60, 128, 772])
@pytest.mark.parametrize("shape", [(3,), (2, 5), (0,)])
def test_what_comes_back(name: str, depth: int, shape: tuple[int, ...]) -> None:
    weights = torch.randn(*shape, depth)
    packed = pack(weights, name)
    assert packed.shape == (*shape, FORMATS[name].row_bytes(depth))
    assert packed.shape[-1] % 64 == 0
    back, wanted = unpack(packed, depth, name), weights * pruned.kept(weights)
    if name == "bf16-2:4":
        assert torch.equal(back, wanted.bfloat16().float())
    else:
        most = wanted.abs().amax() if wanted.numel() else 0
        assert torch.equal(back == 0, wanted == 0)
        torch.testing.assert_close(back, wanted, atol=0.006 * float(most) + 1e-9, rtol=0)
    assert torch.equal(pack(back, name), packed)


def test_bits() -> None:
    assert [FORMATS[name].bits_per_weight(4096) for name in NAMES] == [9.0, 5.5]


@needs_library
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("outs", "depth"), [(1, 4), (3, 36), (6, 200), (17, 768), (130, 2080)])
def test_few_rows(name: str, outs: int, depth: int) -> None:
    packed, bias = pack(torch.randn(outs, depth), name), torch.randn(outs)
    values = unpack(packed, depth, name)
    for rows in range(1, 7):
        x = torch.randn(rows, depth)
        assert distance(kernels.packed_linear(x, packed, depth, name, bias), x, values, bias) < 1e-5
        in_halves = kernels.packed_linear(x.bfloat16(), packed, depth, name)
        assert distance(in_halves, x.bfloat16(), values) < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_many_rows_and_no_compiler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, x = pack(torch.randn(150, 300), name), torch.randn(70, 300)
    values = unpack(packed, 300, name)
    assert distance(kernels.packed_linear(x, packed, 300, name), x, values) < 1e-5
    monkeypatch.setattr(products, "native_library", lambda: None)
    assert distance(kernels.packed_linear(x[:2], packed, 300, name), x[:2], values) < 1e-5


@needs_library
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_unpacks_the_same_values(name: str, dtype: torch.dtype) -> None:
    for depth in (4, 100, 500):
        packed = pack(torch.randn(9, depth), name)
        out = products.unpacked_into(torch.empty(9, depth, dtype=dtype), packed, depth, FORMATS[name])
        assert torch.equal(out, unpack(packed, depth, name, dtype))


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="6 inputs are no multiple of 4"):
        pack(torch.randn(2, 6), "bf16-2:4")
    with pytest.raises(ValueError, match="NaN or infinity"):
        pack(torch.full((2, 8), float("nan")), "int8-2:4")


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("processor", ["x86-64", "x86-64-v2", "x86-64-v3", "native"])
def test_lesser_processors(processor: str, tmp_path: Path) -> None:
    """The code for narrower registers, where this machine's compiler knows them."""
    product = product_for(processor, tmp_path)
    for name in NAMES:
        packed, x, y = pack(torch.randn(7, 700), name), torch.randn(6, 700), torch.empty(6, 7)
        product(FORMATS[name].code, x.data_ptr(), packed.data_ptr(), packed.shape[1], 6, 7, 700, y.data_ptr())
        assert distance(y, x, unpack(packed, 700, name)) < 1e-5
