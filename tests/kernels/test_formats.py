"""Row formats: what comes back, how far it is off, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pragnosia import kernels
from pragnosia.kernels import formats
from pragnosia.kernels.formats import FORMATS as ALL
from pragnosia.kernels.formats import pack, unpack

FORMATS = {name: entry for name, entry in ALL.items() if not entry.pruned}  # those: test_pruned.py
GROUPED = [name for name, entry in FORMATS.items() if entry.group]
# relative RMS error that a format may have on normally distributed weights, and on heavy tails (Student, 4 degrees)
BOUNDS = {
    "fp32": (0.0, 0.0),
    "bf16": (0.002, 0.002),
    "int8": (0.006, 0.009),
    "int4": (0.075, 0.095),
    "int3": (0.152, 0.19),
    "int2": (0.31, 0.38),
    "nf4": (0.083, 0.097),
}


def rms(wrong: Tensor, right: Tensor) -> float:
    """Relative RMS error."""
    return float((wrong - right).square().sum().sqrt() / right.square().sum().sqrt())


def q4_0(weights: Tensor) -> Tensor:
    """llama.cpp's rounding to 4.5 bits: groups of 32, the farthest value exactly at -8."""
    groups = weights.reshape(-1, 32)
    farthest = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    scale = (farthest / -8).half().float()
    return ((groups / scale + 8.5).floor().clamp(0, 15) - 8).mul(scale).view_as(weights)


def heavy(rows: int, depth: int) -> Tensor:
    """Weights with heavy tails."""
    return torch.distributions.StudentT(4.0).sample((rows, depth)) * 0.02


@pytest.mark.parametrize("name", FORMATS)
def test_error(name: str) -> None:
    normal = torch.randn(64, 2048) * 0.02
    for weights, bound in zip((normal, heavy(64, 2048)), BOUNDS[name], strict=True):
        assert rms(unpack(pack(weights, name), 2048, name), weights) <= bound


@pytest.mark.parametrize("make", [lambda: torch.randn(64, 1024), lambda: heavy(64, 1024)])
def test_int4_is_closer_than_q4_0(make: object) -> None:
    weights = make()  # type: ignore[operator]
    assert rms(unpack(pack(weights, "int4"), 1024, "int4"), weights) < 0.87 * rms(q4_0(weights), weights)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("depth", [1, 31, 32, 33, 128, 200, 768])
@pytest.mark.parametrize("shape", [(3,), (2, 5), (0,)])
def test_shapes(name: str, depth: int, shape: tuple[int, ...]) -> None:
    weights = torch.randn(*shape, depth)
    packed = pack(weights, name)
    assert packed.shape == (*shape, FORMATS[name].row_bytes(depth))
    assert packed.dtype == torch.uint8
    assert packed.shape[-1] % 64 == 0
    back = unpack(packed, depth, name, torch.bfloat16)
    assert back.shape == weights.shape
    assert back.dtype == torch.bfloat16
    if back.numel():
        assert rms(back.float(), weights) < 0.45


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_is_packed_by_itself(name: str) -> None:
    weights = heavy(9, 300)
    packed = pack(weights, name)
    for row in range(9):
        assert torch.equal(pack(weights[row : row + 1], name)[0], packed[row])


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_unpacked_packs_to_itself(name: str) -> None:
    once = unpack(pack(heavy(32, 1024), name), 1024, name)
    again = unpack(pack(once, name), 1024, name)
    assert rms(again, once) < (0.03 if name == "int2" else 0.01)  # the search may miss the grid it came from
    assert (again == once).float().mean() > 0.99


@pytest.mark.parametrize("name", FORMATS)
def test_rows_unlike_others(name: str) -> None:
    weights = torch.zeros(6, 256)
    weights[1] = 0.37
    weights[2] = -1e-6
    weights[3, 7] = 1000.0
    weights[4] = torch.randn(256) * 1e-5
    weights[5] = torch.randn(256) * 1e5
    back = unpack(pack(weights, name), 256, name)
    assert not back[0].any()
    torch.testing.assert_close(back[1:3], weights[1:3], rtol=0.05, atol=0)
    torch.testing.assert_close(back[3], weights[3], rtol=0.05, atol=0)
    for row in (4, 5):
        assert rms(back[row], weights[row]) < 0.35


@pytest.mark.parametrize("name", GROUPED)
def test_zero_stays_zero(name: str) -> None:
    weights = torch.randn(16, 512) * (torch.rand(16, 512) < 0.5)
    assert not unpack(pack(weights, name), 512, name)[weights == 0].abs().gt(0.4).any()
    pruned = torch.zeros(2, 512)
    pruned[:, :32] = torch.randn(2, 32)
    assert not unpack(pack(pruned, name), 512, name)[:, 32:].any()


@pytest.mark.parametrize("name", ["int4", "int3", "int2", "nf4"])
def test_importance_serves_those_inputs(name: str) -> None:
    weights, importance = torch.randn(64, 512), torch.rand(512).pow(4) + 1e-3
    plain, weighed = (unpack(pack(weights, name, seen), 512, name) for seen in (None, importance))
    assert ((weighed - weights).square() * importance).sum() < 0.97 * ((plain - weights).square() * importance).sum()
    assert torch.equal(unpack(pack(weights, name, torch.ones(512)), 512, name), plain)


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("depth", [1, 300, 2048])
def test_compiled_or_not(name: str, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, importance = heavy(16, depth), torch.rand(depth) + 0.01
    here = [pack(weights, name, seen) for seen in (None, importance)]
    monkeypatch.setattr(formats, "native_library", lambda: None)
    for packed, seen in zip(here, (None, importance), strict=True):
        assert (packed == pack(weights, name, seen)).float().mean() > 0.995  # ties may fall otherwise


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_refuses_what_is_no_number(name: str, wrong: float, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(formats, "native_library", lambda: None)
    weights = torch.randn(4, 64)
    weights[2, 3] = wrong
    with pytest.raises(ValueError, match="NaN or infinity"):
        pack(weights, name)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="Did you mean 'int4'"):
        pack(torch.randn(2, 2), "imt4")
    with pytest.raises(ValueError, match="expected floats"):
        pack(torch.randn(3), "int4")
    with pytest.raises(ValueError, match="expected floats"):
        pack(torch.zeros(3, 3, dtype=torch.int8), "int4")
    with pytest.raises(ValueError, match="importance"):
        pack(torch.randn(3, 4), "int4", torch.ones(3))
    with pytest.raises(ValueError, match="reach 1e"):
        pack(torch.full((1, 4), 1e30), "int4")
    with pytest.raises(ValueError, match=r"expected torch\.uint8"):
        unpack(pack(torch.randn(3, 128), "int4"), 256, "int4")


def test_bits() -> None:
    assert {name: FORMATS[name].bits_per_weight(2048) for name in GROUPED} == {
        "int8": 8.5,
        "int4": 4.5,
        "int3": 3.5,
        "int2": 2.5,
        "nf4": 4.5,
    }


def test_half_precision_goes_in() -> None:
    weights = torch.randn(8, 256).bfloat16()
    assert torch.equal(pack(weights, "int4"), pack(weights.float(), "int4"))
    assert torch.equal(kernels.unpack(kernels.pack(weights, "bf16"), 256, "bf16", torch.bfloat16), weights)


def test_chunks_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "native_library", lambda: None)
    weights = torch.randn(40, 384)
    whole = pack(weights, "int3")
    monkeypatch.setattr(formats, "CHUNK", 1000)
    assert torch.equal(pack(weights, "int3"), whole)
    assert torch.equal(unpack(whole, 384, "int3"), unpack(pack(weights, "int3"), 384, "int3"))
