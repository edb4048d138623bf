"""What a model thinks of given tokens: log-probabilities in float32, without ever holding (N, V) logits.

    log p(target) = z[target] - logsumexp_v z[v]          z = hidden W'          [nats]

The head is taken in blocks of rows and of vocabulary; products, sums and logarithms are float32 whatever the precision
of the weights, since bf16 logits near 16 lie 1/8 apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pragnosia.model.cortex import Cortex
from pragnosia.quantisation.layers import PackedLinear
from pragnosia.units import MIB

# 512 x 4096 logits of float32 are 8 MiB: they stay in cache.
ROWS, COLUMNS = 512, 4096
_UNPACKING = 8  # bytes that a packed weight takes beside its plain forms while it is unpacked
_PRODUCTS = 48 * MIB  # the code that torch's library of products writes for each shape, and keeps
Head: TypeAlias = "nn.Linear | PackedLinear | Tensor"
"""The output head, (V, D)."""


@dataclass(frozen=True)
class Scores:
    """Of N tokens."""

    log_probabilities: Float[Tensor, " N"]
    """Nats."""
    greedy: Bool[Tensor, " N"]
    """Whether the token is the one the model thinks likeliest, of equals the first."""
    likeliest: Int[Tensor, " N"]
    """That one."""


def scratch(vocabulary: int, width: int, tokens: int) -> int:
    """Bytes that scoring takes beside the model: a block of logits and of the head, a packed one's made plain."""
    rows, columns = min(ROWS, tokens), min(COLUMNS, vocabulary)
    return 4 * 4 * rows * columns + (2 * 4 + _UNPACKING) * columns * width + _PRODUCTS


@torch.inference_mode()
def score(hidden: Float[Tensor, "N D"], head: Head, targets: Int[Tensor, " N"]) -> Scores:
    """Score each target by the hidden state before it."""
    blocks = zip(hidden.split(ROWS), targets.split(ROWS), strict=True)
    parts = [_score_rows(rows.float(), head, aims) for rows, aims in blocks]
    return Scores(
        torch.cat([part.log_probabilities for part in parts]),
        torch.cat([part.greedy for part in parts]),
        torch.cat([part.likeliest for part in parts]),
    )


def _score_rows(rows: Float[Tensor, "R D"], head: Head, targets: Int[Tensor, " R"]) -> Scores:
    norm = best = chosen = rows.new_full(targets.shape, float("-inf"))
    likeliest = torch.zeros_like(targets)
    for start, some in _blocks(head):
        logits = rows @ some.float().T
        norm = torch.logaddexp(norm, logits.logsumexp(-1))
        peak, where = logits.max(-1)
        likeliest = torch.where(peak > best, where + start, likeliest)
        best = torch.maximum(best, peak)
        column = targets - start
        inside = (column >= 0) & (column < logits.shape[1])
        here = logits.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        chosen = torch.where(inside, here, chosen)
    return Scores(chosen - norm, likeliest == targets, likeliest)


def _blocks(head: Head) -> Iterator[tuple[int, Tensor]]:
    """Rows of the head, and where they begin; packed ones are made plain only for their turn."""
    whole = head if isinstance(head, PackedLinear | Tensor) else head.weight
    count = whole.out_features if isinstance(whole, PackedLinear) else len(whole)
    for start in range(0, count, COLUMNS):
        part = slice(start, start + COLUMNS)
        yield start, whole.weight_of(part) if isinstance(whole, PackedLinear) else whole[part]


@contextmanager
def listening(model: Cortex) -> Iterator[None]:
    """Evaluation mode and no gradients; afterwards the mode is as it was."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)
