"""Triton programs over packed rows (formats.py): read packed, made numbers in registers, multiplied. Needs triton.

    up_packed     P = act(X up' + b)                    a tile of slots of one unit, BN of its neurons
    rows_packed   out[o] = scale (X[i] W' + b)          W packed row by row of its outputs
    turned_packed out[o] = scale (X[i] W + b)           W packed row by row of its inputs (units of few neurons)

A block of 128 weights is dealt out (formats.py): field f of a plane of 16 p bytes is codes 16 p f + i, and code c is
weight 32 g + 4 (c div 16) + c mod 4 of the block, g = (c div 4) mod 4 its group. Inputs are gathered in that order, so
that weights need not be moved. Sums run in fixed order and nothing is added atomically.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl

from pragnosia.kernels.triton_kernels import _gate, _value

# how a code becomes a number: s (q - 128), s (q - z), s table[q]
SYMMETRIC, ZERO_POINT, TABLE = (tl.constexpr(kind) for kind in range(3))


@triton.jit
def _within(field: tl.constexpr, lanes: tl.constexpr):
    """Which weight of its block each lane of a field is, (lanes,)."""
    code = field * lanes + tl.arange(0, lanes)
    return 32 * ((code // 4) % 4) + 4 * (code // 16) + code % 4


@triton.jit
def _scales(heads, at, here, kind: tl.constexpr, bits: tl.constexpr):
    """s and z (BN, 4) of the groups of one block; `at` (BN,) counts headers."""
    group = tl.arange(0, 4)
    head = tl.load(heads + at[:, None] + group[None, :], mask=here[:, None], other=0).to(tl.int32) & 0xFFFF
    if kind == ZERO_POINT:
        scale = (((head >> 6) + (87 << 4)) << 19).to(tl.float32, bitcast=True)
        zero = (head & 63).to(tl.float32) * ((1 << bits) / 64)
    else:
        scale = (head << 16).to(tl.float32, bitcast=True)
        zero = scale * 0 + 128
    return scale, zero


@triton.jit
def _spread(groups, BN: tl.constexpr, lanes: tl.constexpr):
    """(BN, 4) to the lanes of a field, (BN, lanes): four lanes a group, groups in turn."""
    return tl.reshape(tl.broadcast_to(groups[:, None, :, None], (BN, lanes // 16, 4, 4)), (BN, lanes))


@triton.jit
def _values(
    plane, high, scale, zero, table, here, field: tl.constexpr, kind: tl.constexpr, bits: tl.constexpr,
    BN: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """Field `field` of a block as numbers in single precision, (BN, lanes); `high` (BN,) points to int3's top bits."""
    per: tl.constexpr = lanes // 16
    code = (plane >> (per * field)) & ((1 << per) - 1)
    if bits == 3:
        lane = tl.arange(0, lanes)
        top = tl.load(high[:, None] + (lane % 16)[None, :], mask=here[:, None], other=0).to(tl.int32)
        code |= ((top >> (2 * field + lane // 16)[None, :]) & 1) << 2
    if kind == TABLE:  # noqa: SIM108  the compiler takes but one of the two
        number = tl.load(table + code)
    else:
        number = code.to(tl.float32) - _spread(zero, BN, lanes)
    return number * _spread(scale, BN, lanes)


@triton.jit
def _add(total, left, w, few: tl.constexpr, precision: tl.constexpr):
    """total (BM, BN) + left (BM, K) w (BN, K)': few rows by plain sums, many on the tensor cores."""
    if few:
        return total + tl.sum(left.to(tl.float32)[:, None, :] * w[None, :, :], 2)
    else:
        return tl.dot(left, tl.trans(w.to(left.dtype)), total, input_precision=precision)


@triton.jit
def _times(
    total, x, source, here_m, codes, heads, row, here_n, table, K,
    kind: tl.constexpr, bits: tl.constexpr, few: tl.constexpr, precision: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """total (BM, BN) + x[source] (BM, K) times packed rows at bytes `row` (BN,), each of K weights."""
    lanes: tl.constexpr = 32 if bits == 3 else 16 * bits
    blocks = tl.cdiv(K, 128)
    lane = tl.arange(0, lanes)
    for block in range(blocks):
        start = row + block * (16 * bits)
        plane = tl.load(codes + start[:, None] + lane[None, :], mask=here_n[:, None], other=0).to(tl.int32)
        scale, zero = _scales(heads, (row + blocks * (16 * bits)) // 2 + block * 4, here_n, kind, bits)
        for field in tl.static_range(128 // lanes):
            w = _values(plane, codes + start + 32, scale, zero, table, here_n, field, kind, bits, BN, lanes)
            k = block * 128 + _within(field, lanes)
            left = tl.load(x + source[:, None] * K + k[None, :], mask=here_m[:, None] & (k < K)[None, :], other=0.0)
            total = _add(total, left, w, few, precision)
    return total


@triton.jit
def up_packed(
    x, tokens, codes, heads, table, bias, active, tile_unit, tile_at, tile_start, tile_stop, D, F, row_bytes,
    code: tl.constexpr, gated: tl.constexpr, biased: tl.constexpr, kind: tl.constexpr, bits: tl.constexpr,
    few: tl.constexpr, precision: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """P (N, F) of one tile and BN neurons; the unit's record begins at byte `tile_at`, with its up rows."""
    tile = tl.program_id(0)
    m = tl.load(tile_start + tile) + tl.arange(0, BM)
    here = m < tl.load(tile_stop + tile)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    token = tl.load(tokens + m, mask=here, other=0).to(tl.int64)
    row = tl.load(tile_at + tile) + n.to(tl.int64) * row_bytes
    gate = tl.zeros((BM, BN), tl.float32)
    gate = _times(gate, x, token, here, codes, heads, row, n < F, table, D, kind, bits, few, precision, BN)
    if biased:
        parts = 2 if gated else 1
        bias += tl.load(tile_unit + tile).to(tl.int64) * parts * F
        gate += tl.load(bias + n, mask=n < F, other=0.0).to(tl.float32)[None, :]
    result = _gate(gate, code)
    if gated:
        row += F * row_bytes  # a record is less than 2 GiB
        value = tl.zeros((BM, BN), tl.float32)
        value = _times(value, x, token, here, codes, heads, row, n < F, table, D, kind, bits, few, precision, BN)
        if biased:
            value += tl.load(bias + F + n, mask=n < F, other=0.0).to(tl.float32)[None, :]
        result *= _value(value, code)
    to = active + m.to(tl.int64)[:, None] * F + n[None, :]
    tl.store(to, result.to(active.dtype.element_ty), mask=here[:, None] & (n < F)[None, :])


@triton.jit
def rows_packed(
    x, target, codes, heads, table, bias, scale, out, tile_unit, tile_at, tile_start, tile_stop, K, N, row_bytes,
    biased: tl.constexpr, scaled: tl.constexpr, scattered: tl.constexpr, kind: tl.constexpr, bits: tl.constexpr,
    few: tl.constexpr, precision: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out[target] (., N) = scale (x (., K) W' + b) of one tile and BN outputs; W begins at byte `tile_at`."""
    tile = tl.program_id(0)
    m = tl.load(tile_start + tile) + tl.arange(0, BM)
    here = m < tl.load(tile_stop + tile)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    row = tl.load(tile_at + tile) + n.to(tl.int64) * row_bytes
    total = tl.zeros((BM, BN), tl.float32)
    total = _times(
        total, x, m.to(tl.int64), here, codes, heads, row, n < N, table, K, kind, bits, few, precision, BN
    )  # fmt: skip
    if biased:
        unit = tl.load(tile_unit + tile).to(tl.int64)
        total += tl.load(bias + unit * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    to = tl.load(target + m, mask=here, other=0).to(tl.int64) if scattered else m.to(tl.int64)
    if scaled:
        total *= tl.load(scale + to, mask=here, other=0.0).to(tl.float32)[:, None]
    tl.store(out + to[:, None] * N + n[None, :], total.to(out.dtype.element_ty), mask=here[:, None] & (n < N)[None, :])


@triton.jit
def turned_packed(
    x, target, codes, heads, table, bias, scale, out, tile_unit, tile_at, tile_start, tile_stop, K, N, row_bytes,
    biased: tl.constexpr, kind: tl.constexpr, bits: tl.constexpr, few: tl.constexpr, precision: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The same of rows that belong to inputs: one field of one block of N, that is 16 to 128 outputs, a program."""
    lanes: tl.constexpr = 32 if bits == 3 else 16 * bits
    per: tl.constexpr = 128 // lanes
    tile, block = tl.program_id(0), tl.program_id(1)
    m = tl.load(tile_start + tile) + tl.arange(0, BM)
    here = m < tl.load(tile_stop + tile)
    to = tl.load(target + m, mask=here, other=0).to(tl.int64)
    blocks = tl.cdiv(N, 128)
    lane, first = tl.arange(0, lanes), tl.load(tile_at + tile)
    for field in tl.static_range(per):
        n = block * 128 + _within(field, lanes)
        total = tl.zeros((BM, lanes), tl.float32)
        for at in range(0, K, BK):
            k = at + tl.arange(0, BK)
            row = first + k.to(tl.int64) * row_bytes
            start = row + block * (16 * bits)
            plane = tl.load(codes + start[:, None] + lane[None, :], mask=(k < K)[:, None], other=0).to(tl.int32)
            s, z = _scales(heads, (row + blocks * (16 * bits)) // 2 + block * 4, k < K, kind, bits)
            w = _values(plane, codes + start + 32, s, z, table, k < K, field, kind, bits, BK, lanes)  # (BK, lanes)
            left = tl.load(
                x + m.to(tl.int64)[:, None] * K + k[None, :], mask=here[:, None] & (k < K)[None, :], other=0.0
            )
            if few:
                total += tl.sum(left.to(tl.float32)[:, :, None] * w[None, :, :], 1)
            else:
                total = tl.dot(left, w.to(left.dtype), total, input_precision=precision)
        if biased:
            unit = tl.load(tile_unit + tile).to(tl.int64)
            total += tl.load(bias + unit * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        total *= tl.load(scale + to, mask=here, other=0.0).to(tl.float32)[:, None]
        where = here[:, None] & (n < N)[None, :]
        tl.store(out + to[:, None] * N + n[None, :], total.to(out.dtype.element_ty), mask=where)
