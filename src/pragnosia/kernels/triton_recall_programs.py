"""Triton programs of long-term memory: what recalled rows sum to, the slopes, and rows that learn. Needs triton.

    read_rows     y[t] = sum_a s[t, a] table[row[t, a]]                        a program: a token, a stretch of D
    slopes        ds[t, a] = <dy[t], table[row[t, a]]>                         a program: a slot
    row_slopes    d table[r] = sum over the slots that name r of s dy          a program: a named row, a stretch of D
    step_rows     Adam with one second moment for a row (source/recall.hpp)    a program: a named row

Sums run in fixed order and nothing is added atomically: the same input gives the same bits.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def read_rows(table, rows, strengths, out, A, D, BLOCK: tl.constexpr):
    """out (T, D), single precision."""
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for a in range(A):
        row, strength = tl.load(rows + t * A + a), tl.load(strengths + t * A + a)
        total += strength * tl.load(table + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out + t * D + d, total, mask=d < D)


@triton.jit
def slopes(table, rows, grad, out, A, D, BLOCK: tl.constexpr):
    """out (T A,) of the strengths."""
    slot = tl.program_id(0).to(tl.int64)
    row, token = tl.load(rows + slot), slot // A
    total = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, D, BLOCK):
        d = at + tl.arange(0, BLOCK)
        its = tl.load(table + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        total += its * tl.load(grad + token * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out + slot, tl.sum(total))


@triton.jit
def row_slopes(grad, strengths, order, bounds, out, A, D, BLOCK: tl.constexpr):
    """out (R, D) of the named rows; slots bounds[i] .. bounds[i + 1] of `order` name the i-th."""
    i = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for at in range(tl.load(bounds + i), tl.load(bounds + i + 1)):
        slot = tl.load(order + at).to(tl.int64)
        its = tl.load(grad + slot // A * D + d, mask=d < D, other=0.0).to(tl.float32)
        total += tl.load(strengths + slot) * its
    tl.store(out + i * D + d, total.to(out.dtype.element_ty), mask=d < D)


@triton.jit
def step_rows(
    table, values, named, order, bounds, first, second, recalled, D, rate, beta1, beta2, epsilon, BLOCK: tl.constexpr
):
    """BLOCK covers D: a program holds its row's slope."""
    i = tl.program_id(0).to(tl.int64)
    row, d = tl.load(named + i), tl.arange(0, BLOCK)
    slope = tl.zeros((BLOCK,), tl.float32)
    for at in range(tl.load(bounds + i), tl.load(bounds + i + 1)):
        source = tl.load(order + at).to(tl.int64)
        slope += tl.load(values + source * D + d, mask=d < D, other=0.0).to(tl.float32)
    count = tl.load(recalled + row) + 1
    n = count.to(tl.float32)
    v = beta2 * tl.load(second + row) + (1 - beta2) * tl.sum(slope * slope) / D
    size = tl.sqrt(v / (1 - tl.exp(n * tl.log(beta2)))) + epsilon
    pace = rate / ((1 - tl.exp(n * tl.log(beta1))) * size)
    here, its = d < D, row * D + d
    m = beta1 * tl.load(first + its, mask=here, other=0.0).to(tl.float32) + (1 - beta1) * slope
    w = tl.load(table + its, mask=here, other=0.0).to(tl.float32) - pace * m
    tl.store(recalled + row, count)
    tl.store(second + row, v)
    tl.store(first + its, m.to(first.dtype.element_ty), mask=here)
    tl.store(table + its, w.to(table.dtype.element_ty), mask=here)
