"""Ladder: a text whose last tokens stand at different layers, and climb together when they must.

    tokens before `settled`        have passed every layer
    tokens after them, `waiting`   stand at a layer each, none higher than the token before it

A token that is to pass a layer finds there the keys and values of all tokens before it: whoever lifts it lifts them
first. Tokens that stand at one layer are neighbours, so they climb in one compiled call that reads each weight once for
four of them (kernels/source/span.hpp), and become bit for bit what they would have become one after the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pragnosia.errors import CheckpointError
from pragnosia.inference.program import Pen
from pragnosia.kernels import span as spans
from pragnosia.kernels.span import MOST, Span
from pragnosia.kernels.step import UnitUnreadableError
from pragnosia.model.cortex import Cortex
from pragnosia.model.setting import WHOLE, Setting
from pragnosia.model.state import KeyValues, State
from pragnosia.model.thalamus import Routing


@dataclass(frozen=True)
class Climb:
    """One call: `tokens` tokens through layers [start, end) behind `past` others; `heads` of them were given logits."""

    start: int
    end: int
    tokens: int
    past: int
    heads: int
    routings: tuple[Routing | None, ...]
    """Of layers [start, end)."""
    only_remembers: bool = False
    """Whether the layers only took keys and values from streams that stayed as they were."""


def climbable(model: Cortex) -> bool:
    """Whether a program's model can be climbed: positions that do not stretch, and products that agree bit for bit."""
    return not model.model.positions.stretches and spans.agrees()


class Ladder:
    """The tokens of one text, and the layers that they stand at."""

    def __init__(
        self, model: Cortex, state: State, setting: Setting = WHOLE, trace: Callable[[Climb], None] | None = None
    ) -> None:
        memories: Any = state.layers
        self._memories: tuple[KeyValues, ...] = memories
        self._pen, self._trace = Pen(model, self._memories, setting, tokens=MOST), trace
        self._table: Any = model.model.embed_tokens
        self.num_layers: int = self._pen.step.layers
        self.room = min(memory.keys.shape[2] for memory in self._memories)
        self.settled = state.length
        self.waiting: list[int] = []
        self.passes = 0
        """Tokens times layers computed so far."""
        self.logits = torch.empty(MOST, model.config.vocab_size)
        """Of the tokens that were given logits last."""
        self.likeliest = torch.empty(MOST, dtype=torch.long)
        self._streams = torch.empty(MOST, model.config.hidden_size)  # of the waiting tokens
        self._token = torch.empty(1, dtype=torch.long)
        self._span = Span(
            step=ctypes.pointer(self._pen.step),
            logits=self.logits.data_ptr(),
            likeliest=self.likeliest.data_ptr(),
            told_slots=self._pen.slots,
            told_units=self._pen.units,
            told_gates=len(self._pen.gates),
        )

    @property
    def length(self) -> int:
        """Tokens read."""
        return self.settled + len(self.waiting)

    @property
    def full(self) -> bool:
        """Whether no further token can wait."""
        return len(self.waiting) == MOST

    def cut(self, length: int) -> None:
        """Forget the tokens after the first `length`."""
        self.settled = min(self.settled, length)
        del self.waiting[length - self.settled :]

    def enter(self, token: int, layer: int, *, head: bool) -> None:
        """Read a token up to `layer`, which no waiting token stands below; with `head` give it logits."""
        if self._pen.row is not None:
            self._table.row(token, self._pen.row[0])
            token = 0
        self._token[0] = token
        self._climb(len(self.waiting), 0, layer, heads=int(head))
        self.waiting.append(layer)

    def lift(self, layer: int, *, heads: int = 0) -> None:
        """Bring every token that stands lower to `layer`; the last `heads` are given logits there."""
        while self.waiting and self.waiting[-1] < layer:
            start = self.waiting[-1]
            first = self.waiting.index(start)
            end = min(layer, self.waiting[first - 1]) if first else layer
            self._climb(first, start, end, heads=heads if end == layer else 0)
            self.waiting[first:] = [end] * (len(self.waiting) - first)
        if layer == self.num_layers:
            self.settled, self.waiting = self.length, []

    def remember(self) -> None:
        """Take the waiting tokens for settled: the layers above draw keys and values from the streams as they are.

        It costs a fraction of those layers, and is not what they would have remembered. All stand at one layer.
        """
        if self.waiting:
            assert len(set(self.waiting)) == 1
            self._climb(0, self.waiting[0], self.num_layers, only_remember=True)
            self.settled, self.waiting = self.length, []

    def guess(self) -> tuple[int, float]:
        """The likeliest word of the first token that was given logits last, and its probability."""
        word = int(self.likeliest[0])
        return word, float((self.logits[0] - self.logits[0, word]).exp_().sum().reciprocal())

    def state(self, length: int) -> State:
        """What is remembered of the first `length` tokens, which must have settled."""
        assert length <= self.settled
        return State(tuple(replace(memory, length=length) for memory in self._memories), length)

    def _climb(self, first: int, start: int, end: int, *, heads: int = 0, only_remember: bool = False) -> None:
        """The waiting tokens from the `first` on, or where `start` is 0 the token that enters, pass [start, end)."""
        span, count = self._span, len(self.waiting) - first if start else 1
        span.start, span.end, span.count, span.position = start, end, count, self.settled + first
        span.tokens = None if start else self._token.data_ptr()
        span.streams = _row(self._streams, first)
        span.heads, span.only_remember = heads, only_remember
        try:
            spans.run(span)
        except UnitUnreadableError:
            raise CheckpointError(self._pen.failure()) from None
        self.passes += 0 if only_remember else count * (end - start)
        if self._trace is not None:
            routings = () if only_remember else self._pen.routings(count)[start:end]
            self._trace(Climb(start, end, count, self.settled + first, heads, routings, only_remember))


def _row(rows: Tensor, number: int) -> int:
    """Where a row lies."""
    return rows.data_ptr() + number * rows.stride(0) * rows.itemsize
