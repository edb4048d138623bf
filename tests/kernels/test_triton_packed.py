"""Triton programs on packed rows against unpacking and multiplying, in Triton's interpreter or on a GPU.

Run them in the interpreter, where triton is installed: TRITON_INTERPRET=1 pytest tests/kernels/test_triton_packed.py
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pragnosia import kernels
from pragnosia.kernels import triton, triton_packed
from pragnosia.kernels.formats import FORMATS, pack, unpack
from pragnosia.kernels.slots import sort_slots
from pragnosia.kernels.triton_packed import FEW, PackedUnits, tile_rows

INTERPRETED = triton.interpreted() and triton.supports(torch.zeros(1))
DEVICE = "cpu" if INTERPRETED else "cuda"
HERE = () if INTERPRETED else pytest.mark.gpu
NAMES = ["int8", "int4", "int3", "int2", "nf4"]


def distance(got: Tensor, wanted: Tensor) -> float:
    return float((got.cpu().double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("name", [pytest.param(name, marks=HERE) for name in NAMES])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_a_linear_layer(name: str, rows: int) -> None:
    """An odd number of outputs, and inputs that end within a block."""
    weight, bias, x = torch.randn(21, 150), torch.randn(21), torch.randn(2, rows, 150)[1]
    packed = pack(weight, name)
    got = triton_packed.linear(x.to(DEVICE), packed.to(DEVICE), 150, FORMATS[name], bias.to(DEVICE))
    wanted = x.double() @ unpack(packed, 150, name).double().t() + bias.double()
    assert distance(got, wanted) < 1e-6


def case(name: str, tokens: int, unit_width: int, activation: str) -> tuple[PackedUnits, list[Tensor], list[Tensor]]:
    """What a bank is, its records and biases, and the same as plain matrices."""
    of = PackedUnits(
        entry=FORMATS[name], width=136, unit_width=unit_width, activation=kernels.activation_named(activation)
    )
    up, down = torch.randn(4, of.num_rows, 136) / 12, torch.randn(4, 136, unit_width) / unit_width**0.5
    turned = FORMATS[name].is_turned(unit_width)
    packed = pack(up, name), pack(down.transpose(1, 2) if turned else down, name)
    records = torch.cat([part.flatten(1) for part in packed], 1)
    records = torch.nn.functional.pad(records, (0, -records.shape[1] % 256))
    plain_down = unpack(packed[1], 136 if turned else unit_width, name)
    plain = [unpack(packed[0], 136, name), plain_down.transpose(1, 2) if turned else plain_down]
    biases = [torch.randn(4, of.num_rows), torch.randn(4, 136)]
    return of, [records, *biases], [*plain, *biases]


@pytest.mark.parametrize(
    ("name", "unit_width", "activation", "tokens"),
    [
        pytest.param(*row, marks=HERE)
        for row in (
            ("int4", 24, "swiglu", 1),
            ("int4", 136, "swiglu", 9),
            ("int8", 136, "relu2", 1),
            ("int8", 24, "geglu", 9),
            ("int4", 24, "drelu", 3),
            ("int3", 24, "swiglu", 2),
            ("nf4", 24, "gelu", 3),
            ("int2", 136, "swiglu", 1),
        )
    ],
)
def test_units_in_their_slots(name: str, unit_width: int, activation: str, tokens: int) -> None:
    of, (records, *biases), plain = case(name, tokens, unit_width, activation)
    x, strengths = torch.randn(tokens, 136), torch.rand(tokens, 2)
    units = torch.rand(tokens, 4).argsort(1)[:, :2]
    units[0, 1] = -1
    wanted = kernels.bank(
        *(x.double(), units, strengths.double(), *(part.double() for part in plain)),
        activation=activation,
        backend="reference",
    )
    there = records.to(DEVICE)[[2, 0, 3, 1]]  # units lie in any order
    slot_of = {2: 0, 0: 1, 3: 2, 1: 3}
    sorted_ = sort_slots(units, 4)
    most = max(stop - start for _, start, stop in sorted_.groups)
    out = torch.zeros(units.numel(), 136, device=DEVICE)
    spans = [(unit, slot_of[unit] * there.shape[1], start, stop) for unit, start, stop in sorted_.groups]
    up_bias, down_bias = (bias.to(DEVICE) for bias in biases)
    for part in (spans[:1], spans[1:]):  # as those that are here, and those that come
        if part:
            triton_packed.units(
                *(x.to(DEVICE), sorted_.tokens.to(DEVICE), sorted_.order.to(DEVICE), part, there, of),
                *(strengths.flatten().to(DEVICE), {"up": up_bias, "down": down_bias}, out, most),
            )
    assert distance(out.view(tokens, 2, 136).sum(1), wanted) < 2e-6


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 4, 300])
def test_in_bfloat16(name: str, rows: int) -> None:
    """Within the rounding of weights and outputs to 8 bits."""
    packed, x = pack(torch.randn(200, 384), name), torch.randn(rows, 384).bfloat16()
    got = kernels.packed_linear(x.cuda(), packed.cuda(), 384, name)
    assert got.dtype == torch.bfloat16
    assert distance(got, x.double() @ unpack(packed, 384, name).double().t()) < 0.005


def test_rows_of_a_tile() -> None:
    assert [tile_rows(most) for most in (1, 2, 3, FEW, 5, 17, 33, 500)] == [1, 2, 4, 4, 16, 32, 64, 64]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_they_compile_for_a_gpu_that_is_not_here(compiled: Callable[[str, int], int], capability: int) -> None:
    assert compiled(_COMPILE, capability) == 4


_COMPILE = """
from pragnosia.kernels import triton_packed_programs as programs

KINDS = {"codes": "*u8", "heads": "*i16", "table": "*fp32", "scale": "*fp32", "bias": "*bf16"}
KINDS |= {"x": "*bf16", "out": "*bf16", "active": "*bf16"}
KINDS |= {name: "*i64" for name in ("tokens", "target", "tile_unit", "tile_at", "tile_start", "tile_stop")}
SHARED = {"biased": True, "precision": "tf32"}
ROWS = {"scaled": True, "scattered": True, "BN": 32}
CASES = [
    (programs.up_packed, {"code": 0, "gated": True, "BN": 32, "kind": 1, "bits": 4, "few": True, "BM": 1}),
    (programs.rows_packed, {**ROWS, "kind": 0, "bits": 8, "few": False, "BM": 32}),
    (programs.rows_packed, {**ROWS, "kind": 2, "bits": 4, "few": True, "BM": 1}),
    (programs.turned_packed, {"BK": 32, "kind": 1, "bits": 3, "few": False, "BM": 16}),
]
for program, own in CASES:
    build(program, {**SHARED, **own}, KINDS)
"""
