"""Triton programs of a grouped bank: a program owns a tile of sorted slots of one unit. Needs triton to import.

    up_forward       H = X up' + b,  P = act(H)                 X gathered, P formed in the same program
    grouped          out[o] = scale (rows[i] W (or W') + b)      gather in, scatter out: Y, dP and dX
    activate_back    dH = s act'(H) dP,  sP,  ds = <P, dP> + <dY, b>       one program a slot
    outer            dW[u] = sum over the slots of u of a' b      every unit; zeros where nobody woke it
    few_up           s P of one slot, read where its unit lies       few tokens of narrow units: nothing is sorted
    few_down         y = sum over a token's slots of s (P W' + b)     the same, and no slot's row is written

Sums run in fixed order and nothing is added atomically: the same input gives the same bits.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl

# codes of activations.py
SWIGLU, GEGLU, REGLU, RELU2, GELU, CLAMPED, DRELU = (tl.constexpr(code) for code in range(7))


@triton.jit
def _gate(x, code: tl.constexpr):
    """The function on the gate, or on the whole of what has none."""
    if code == SWIGLU:
        return x * tl.sigmoid(x)
    elif code == GEGLU:
        return x * tl.sigmoid(1.5957691216 * (x + 0.044715 * x * x * x))
    elif code == REGLU or code == DRELU:  # noqa: PLR1714, SIM109  triton compiles no `in`
        return tl.where(x < 0, 0.0, x)
    elif code == RELU2:
        return tl.where(x < 0, 0.0, x * x)
    elif code == GELU:
        return x * 0.5 * (1 + tl.erf(x * 0.7071067811865476))
    else:
        low = tl.where(x > 7.0, 7.0, x)
        return low * tl.sigmoid(1.702 * low)


@triton.jit
def _gate_slope(x, code: tl.constexpr):
    """Its derivative."""
    if code == SWIGLU:
        s = tl.sigmoid(x)
        return s * (1 + x * (1 - s))
    elif code == GEGLU:
        s = tl.sigmoid(1.5957691216 * (x + 0.044715 * x * x * x))
        return s + x * s * (1 - s) * 1.5957691216 * (1 + 0.134145 * x * x)
    elif code == REGLU or code == DRELU:  # noqa: PLR1714, SIM109  triton compiles no `in`
        return tl.where(x > 0, 1.0, 0.0)
    elif code == RELU2:
        return tl.where(x > 0, 2 * x, 0.0)
    elif code == GELU:
        return 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    else:
        s = tl.sigmoid(1.702 * x)
        return tl.where(x > 7.0, 0.0, s * (1 + 1.702 * x * (1 - s)))


@triton.jit
def _value(v, code: tl.constexpr):
    """What the gate multiplies."""
    if code == CLAMPED:
        return tl.where(v > 7.0, 7.0, tl.where(v < -7.0, -7.0, v)) + 1
    elif code == DRELU:
        return tl.where(v < 0, 0.0, v)
    else:
        return v


@triton.jit
def _value_slope(v, code: tl.constexpr):
    if code == CLAMPED:
        return tl.where((v > 7.0) | (v < -7.0), 0.0, 1.0)
    elif code == DRELU:
        return tl.where(v > 0, 1.0, 0.0)
    else:
        return v * 0 + 1


@triton.jit
def up_forward(
    x, tokens, up, bias, hidden, active, tile_unit, tile_start, bounds, D, F,
    code: tl.constexpr, gated: tl.constexpr, biased: tl.constexpr, precision: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """H (N, G*F) and P (N, F) of one tile and BN columns of P."""
    unit = tl.load(tile_unit + tl.program_id(0))
    if unit < 0:
        return
    unit = unit.to(tl.int64)
    m = tl.load(tile_start + tl.program_id(0)) + tl.arange(0, BM)
    here = m < tl.load(bounds + unit + 1)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    token = tl.load(tokens + m, mask=here, other=0).to(tl.int64)
    parts = 2 if gated else 1
    up += unit * parts * F * D
    gate = tl.zeros((BM, BN), tl.float32)
    value = tl.zeros((BM, BN), tl.float32)
    dtype = active.dtype.element_ty
    for at in range(0, D, BK):
        inside = at + k < D
        rows = tl.load(x + token[:, None] * D + (at + k)[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        weights = n[None, :] * D + (at + k)[:, None]
        wanted = (n < F)[None, :] & inside[:, None]
        w = tl.load(up + weights, mask=wanted, other=0.0).to(dtype)
        gate = tl.dot(rows.to(dtype), w, gate, input_precision=precision)
        if gated:
            w = tl.load(up + F * D + weights, mask=wanted, other=0.0).to(dtype)
            value = tl.dot(rows.to(dtype), w, value, input_precision=precision)
    if biased:
        bias += unit * parts * F
        gate += tl.load(bias + n, mask=n < F, other=0.0).to(tl.float32)[None, :]
        if gated:
            value += tl.load(bias + F + n, mask=n < F, other=0.0).to(tl.float32)[None, :]
    out = here[:, None] & (n < F)[None, :]
    m = m.to(tl.int64)
    kept = hidden + m[:, None] * parts * F + n[None, :]
    tl.store(kept, gate.to(dtype), mask=out)
    result = _gate(gate, code)
    if gated:
        tl.store(kept + F, value.to(dtype), mask=out)
        result *= _value(value, code)
    tl.store(active + m[:, None] * F + n[None, :], result.to(dtype), mask=out)


@triton.jit
def grouped(
    rows, source, w, bias, scale, out, target, tile_unit, tile_start, bounds, K, N, unit_stride, k_stride, n_stride,
    gathered: tl.constexpr, scattered: tl.constexpr, biased: tl.constexpr, scaled: tl.constexpr,
    precision: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out[target] = scale[target] (rows[source] W[u] + bias[u]) for one tile and BN columns."""
    unit = tl.load(tile_unit + tl.program_id(0))
    if unit < 0:
        return
    unit = unit.to(tl.int64)
    m = tl.load(tile_start + tl.program_id(0)) + tl.arange(0, BM)
    here = m < tl.load(bounds + unit + 1)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    dtype = out.dtype.element_ty
    frm = tl.load(source + m, mask=here, other=0).to(tl.int64) if gathered else m.to(tl.int64)
    to = tl.load(target + m, mask=here, other=0).to(tl.int64) if scattered else m.to(tl.int64)
    w += unit * unit_stride
    total = tl.zeros((BM, BN), tl.float32)
    for at in range(0, K, BK):
        inside = at + k < K
        left = tl.load(rows + frm[:, None] * K + (at + k)[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        weights = (at + k)[:, None] * k_stride + n[None, :] * n_stride
        right = tl.load(w + weights, mask=inside[:, None] & (n < N)[None, :], other=0.0)
        total = tl.dot(left.to(dtype), right.to(dtype), total, input_precision=precision)
    if biased:
        total += tl.load(bias + unit * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if scaled:
        total *= tl.load(scale + to, mask=here, other=0.0).to(tl.float32)[:, None]
    tl.store(out + to[:, None] * N + n[None, :], total.to(dtype), mask=here[:, None] & (n < N)[None, :])


@triton.jit
def activate_back(
    hidden, grad_active, strengths, order, last, grad_hidden, active, along, F, grad, tokens, units, bias, D,
    code: tl.constexpr, gated: tl.constexpr, biased: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sorted slot: dH scaled by its strength, P again (scaled too), and the slope of the strength."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(last):
        return
    slot = tl.load(order + row).to(tl.int64)
    s = tl.load(strengths + slot).to(tl.float32)
    parts = 2 if gated else 1
    dtype = active.dtype.element_ty
    total = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, F, BLOCK):
        f = at + tl.arange(0, BLOCK)
        mask = f < F
        dp = tl.load(grad_active + row * F + f, mask=mask, other=0.0).to(tl.float32)
        h = hidden + row * parts * F + f
        gate = tl.load(h, mask=mask, other=0.0).to(tl.float32)
        to = grad_hidden + row * parts * F + f
        if gated:
            value = tl.load(h + F, mask=mask, other=0.0).to(tl.float32)
            p = _gate(gate, code) * _value(value, code)
            tl.store(to, (s * dp * _value(value, code) * _gate_slope(gate, code)).to(dtype), mask=mask)
            tl.store(to + F, (s * dp * _gate(gate, code) * _value_slope(value, code)).to(dtype), mask=mask)
        else:
            p = _gate(gate, code)
            tl.store(to, (s * dp * _gate_slope(gate, code)).to(dtype), mask=mask)
        total += tl.where(mask, p * dp, 0.0)
        tl.store(active + row * F + f, (s * p).to(dtype), mask=mask)
    if biased:
        grad += tl.load(tokens + row).to(tl.int64) * D
        bias += tl.load(units + slot) * D
        for at in range(0, D, BLOCK):
            d = at + tl.arange(0, BLOCK)
            dy = tl.load(grad + d, mask=d < D, other=0.0).to(tl.float32)
            total += dy * tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(along + slot, tl.sum(total))


@triton.jit
def outer(
    a, a_source, b, b_source, scale, order, out, bias, bounds, M, N,
    a_gathered: tl.constexpr, b_gathered: tl.constexpr, biased: tl.constexpr, bias_scaled: tl.constexpr,
    precision: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out[u] (M, N) = a' b over the slots of u, and bias[u] (M,) = the (scaled) sum of a."""
    unit = tl.program_id(2).to(tl.int64)
    first, last = tl.load(bounds + unit), tl.load(bounds + unit + 1)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    column = tl.zeros((BM,), tl.float32)
    for at in range(first, last, BK):
        slot = at + tl.arange(0, BK)
        here = slot < last
        i = tl.load(a_source + slot, mask=here, other=0).to(tl.int64) if a_gathered else slot.to(tl.int64)
        j = tl.load(b_source + slot, mask=here, other=0).to(tl.int64) if b_gathered else slot.to(tl.int64)
        left = tl.load(a + i[None, :] * M + m[:, None], mask=(m < M)[:, None] & here[None, :], other=0.0)
        right = tl.load(b + j[:, None] * N + n[None, :], mask=here[:, None] & (n < N)[None, :], other=0.0)
        # one of the two is an activation kept in the precision of the products
        if a_gathered:
            left = left.to(right.dtype)
        else:
            right = right.to(left.dtype)
        total = tl.dot(left, right, total, input_precision=precision)
        if biased:
            rows = left.to(tl.float32)
            if bias_scaled:
                flat = tl.load(order + slot, mask=here, other=0).to(tl.int64)
                rows *= tl.load(scale + flat, mask=here, other=0.0).to(tl.float32)[None, :]
            column += tl.sum(rows, 1)
    dtype = out.dtype.element_ty
    tl.store(out + unit * M * N + m[:, None].to(tl.int64) * N + n[None, :], total.to(dtype),
             mask=(m < M)[:, None] & (n < N)[None, :])  # fmt: skip
    if biased and tl.program_id(1) == 0:
        tl.store(bias + unit * M + m, column.to(dtype), mask=m < M)


@triton.jit
def few_up(
    x, units, strengths, up, bias, active, D, F, A,
    code: tl.constexpr, gated: tl.constexpr, biased: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """s P (F,) of one slot; 0 where it woke nobody. BN covers F."""
    slot = tl.program_id(0).to(tl.int64)
    unit = tl.load(units + slot)
    n, k = tl.arange(0, BN), tl.arange(0, BK)
    to = active + slot * F + n
    if unit < 0:
        tl.store(to, tl.zeros((BN,), tl.float32), mask=n < F)
        return
    parts = 2 if gated else 1
    x += slot // A * D
    up += unit * parts * F * D
    gates, values = tl.zeros((BN, BK), tl.float32), tl.zeros((BN, BK), tl.float32)
    for at in range(0, D, BK):
        inside = at + k < D
        row = tl.load(x + at + k, mask=inside, other=0.0).to(tl.float32)[None, :]
        weights = n[:, None] * D + (at + k)[None, :]
        wanted = (n < F)[:, None] & inside[None, :]
        gates += row * tl.load(up + weights, mask=wanted, other=0.0).to(tl.float32)
        if gated:
            values += row * tl.load(up + F * D + weights, mask=wanted, other=0.0).to(tl.float32)
    gate, value = tl.sum(gates, 1), tl.sum(values, 1)
    if biased:
        bias += unit * parts * F
        gate += tl.load(bias + n, mask=n < F, other=0.0).to(tl.float32)
        if gated:
            value += tl.load(bias + F + n, mask=n < F, other=0.0).to(tl.float32)
    result = _gate(gate, code)
    if gated:
        result *= _value(value, code)
    tl.store(to, result * tl.load(strengths + slot).to(tl.float32), mask=n < F)


@triton.jit
def few_down(
    active, units, strengths, down, bias, out, D, F, A,
    biased: tl.constexpr, BA: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """BD numbers of one token's y, from s P (slots, F), BA slots at a time. BN covers F."""
    token = tl.program_id(0).to(tl.int64)
    d, n = tl.program_id(1) * BD + tl.arange(0, BD), tl.arange(0, BN)
    total = tl.zeros((BA, BD), tl.float32)
    for at in range(0, A, BA):
        a = at + tl.arange(0, BA)
        slot = token * A + a
        unit = tl.load(units + slot, mask=a < A, other=-1)
        here = unit >= 0
        weights = unit[:, None, None] * D * F + d[None, :, None] * F + n[None, None, :]
        wanted = here[:, None, None] & (d < D)[None, :, None] & (n < F)[None, None, :]
        w = tl.load(down + weights, mask=wanted, other=0.0).to(tl.float32)
        p = tl.load(active + slot[:, None] * F + n[None, :], mask=here[:, None] & (n < F)[None, :], other=0.0)
        total += tl.sum(w * p[:, None, :], 2)
        if biased:
            s = tl.load(strengths + slot, mask=here, other=0.0).to(tl.float32)
            added = here[:, None] & (d < D)[None, :]
            total += s[:, None] * tl.load(bias + unit[:, None] * D + d[None, :], mask=added, other=0.0).to(tl.float32)
    tl.store(out + token * D + d, tl.sum(total, 0).to(out.dtype.element_ty), mask=d < D)
