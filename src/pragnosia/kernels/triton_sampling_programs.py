"""Triton program of triton_sampling.py; imported where it runs.

A program reads its row tile by tile, several times, and sorts nothing: the edge of top-k, or of top-p, is a whole
number of thirty-two bits, of which every pass finds two. A row lies in the cache after the first.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(row, begin, V, temperature, most, BLOCK: tl.constexpr):
    """Of some logits: whole numbers in the order of the floats, and chances as parts of the likeliest's."""
    at = begin + tl.arange(0, BLOCK)
    x = tl.load(row + at, mask=at < V, other=-float("inf")).to(tl.float32) / temperature
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), tl.where(at < V, tl.exp(x - most), 0.0)


@triton.jit
def _edge(row, V, temperature, most, kth, bound, COUNTS: tl.constexpr, BLOCK: tl.constexpr):
    """The least number above which the tokens not below `kth` come to less than `bound`, in count or in chance."""
    edge = tl.full((), -2147483648, tl.int64)
    quarter = tl.full((), 1 << 30, tl.int64)
    for _ in range(16):
        first = (edge + quarter - 1).to(tl.int32)
        second = (edge + 2 * quarter - 1).to(tl.int32)
        third = (edge + 3 * quarter - 1).to(tl.int32)
        one, two, three = 0.0, 0.0, 0.0
        for begin in range(0, V, BLOCK):
            keys, part = _tile(row, begin, V, temperature, most, BLOCK)
            if COUNTS:
                part = tl.where(begin + tl.arange(0, BLOCK) < V, 1.0, 0.0)
            part = tl.where(keys >= kth, part, 0.0)
            one += tl.sum(tl.where(keys > first, part, 0.0))
            two += tl.sum(tl.where(keys > second, part, 0.0))
            three += tl.sum(tl.where(keys > third, part, 0.0))
        passed = (one >= bound).to(tl.int64) + (two >= bound).to(tl.int64) + (three >= bound).to(tl.int64)
        edge += passed * quarter
        quarter = quarter // 4
    return edge.to(tl.int32)


@triton.jit
def draw_tokens(logits, chances, chosen, V, temperature, top_k, top_p, min_p, BLOCK: tl.constexpr):
    """Of each row of logits (B, V): softmax at a temperature, top-k, top-p, min-p, and where its chance (B,) falls."""
    number = tl.program_id(0).to(tl.int64)
    row = logits + number * V
    most = -float("inf")
    for begin in range(0, V, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        x = tl.load(row + at, mask=at < V, other=-float("inf")).to(tl.float32)
        most = tl.maximum(most, tl.max(x / temperature))
    edge = tl.full((), -2147483648, tl.int32)
    if top_k < V:
        edge = _edge(row, V, temperature, most, edge, top_k.to(tl.float32), True, BLOCK)
    if top_p < 1:
        bound = 0.0
        for begin in range(0, V, BLOCK):
            keys, part = _tile(row, begin, V, temperature, most, BLOCK)
            bound += tl.sum(tl.where(keys >= edge, part, 0.0))
        edge = tl.maximum(edge, _edge(row, V, temperature, most, edge, top_p * bound, False, BLOCK))
    total = 0.0
    for begin in range(0, V, BLOCK):
        keys, part = _tile(row, begin, V, temperature, most, BLOCK)
        total += tl.sum(tl.where((keys >= edge) & (part >= min_p), part, 0.0))
    wanted = tl.load(chances + number) * total
    passed, first, last = 0.0, V, 0
    for begin in range(0, V, BLOCK):
        keys, part = _tile(row, begin, V, temperature, most, BLOCK)
        part = tl.where((keys >= edge) & (part >= min_p), part, 0.0)
        at = begin + tl.arange(0, BLOCK)
        first = tl.minimum(first, tl.min(tl.where((part > 0) & (passed + tl.cumsum(part) > wanted), at, V)))
        last = tl.maximum(last, tl.max(tl.where(part > 0, at, 0)))  # where rounding left the chance behind them all
        passed += tl.sum(part)
    tl.store(chosen + number, tl.minimum(first, last).to(tl.int64))
