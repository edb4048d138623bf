"""The plan: what of a model stays in memory, what is fetched when it wakes, and how fast that will be.

    budget = interpreter + resident weights + keys and values + scratch + slots x record

The slots take what the rest leaves. A token wakes A units in each of L sparse layers; a share h of them (the hit rate)
is here, the others are read:

    seconds per token = awake bytes / memory rate + (1 - h) A L record / disk rate

What is here is computed while the rest is on its way, yet on two cores that hides nothing that can be measured: the
threads that read take from those that compute (benchmarks/budget/forecast.py).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch

from pragnosia.errors import BudgetError
from pragnosia.inference.shelf import EMBEDDING, Shelf
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.kernels.pool import UnitPool, record_bytes
from pragnosia.model.organs import ExpertsConfig
from pragnosia.units import MIB, format_bytes, parse_bytes

PROMPT_PIECE = 1024
"""Tokens of a prompt that are read at once: more would take more scratch and gain nothing."""
CONTEXT = 4096
"""Tokens that a conversation has room for, unless it is said otherwise."""
_MARGIN = 24 * MIB  # what malloc keeps and nobody counts
# Hit rate by share of the units that have a slot, measured on benchmarks/budget's checkpoint: its routing is random
# and yet not even; real text repeats itself more.
_HITS = ((0.0, 0.0), (0.09, 0.46), (0.12, 0.54), (0.14, 0.58), (0.26, 0.72), (0.34, 0.82), (0.42, 0.89), (0.55, 0.95))


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Bytes per second that this machine reads."""

    memory: float
    disk: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes, each where it belongs; and what follows."""

    budget: int
    interpreter: int
    resident: int
    cache: int
    scratch: int
    record: int
    slots: int
    num_units: int
    sparse_layers: int
    awake: int
    context: int
    awake_bytes: int
    """Weights that one token reads."""

    @property
    def pool(self) -> int:
        """Memory of the slots."""
        return UnitPool.bytes_for(self.record, self.slots)

    @property
    def total(self) -> int:
        """Never above the budget."""
        return self.interpreter + self.resident + self.cache + self.scratch + self.pool

    @property
    def share(self) -> float:
        """Of all units, those that have a slot."""
        return self.slots / max(self.num_units, 1)

    @property
    def hit_rate(self) -> float:
        """Expected; what really comes depends on the text."""
        for (low, below), (high, above) in pairwise((*_HITS, (1.0, 1.0))):
            if self.share <= high:
                return below + (above - below) * (self.share - low) / (high - low)
        return 1.0

    def tokens_per_second(self, rates: Rates) -> float:
        """Expected when decoding."""
        computing = self.awake_bytes / rates.memory
        reading = (1 - self.hit_rate) * self.awake * self.sparse_layers * self.record / rates.disk
        return 1 / (computing + reading)

    def table(self, rates: Rates | None = None) -> str:
        """For a person, before anything runs."""
        rows = [
            ("interpreter and libraries", self.interpreter, ""),
            ("resident weights", self.resident, "attention, norms, routers, output head"),
            ("keys and values", self.cache, f"{self.context} tokens"),
            ("scratch", self.scratch, ""),
            ("units", self.pool, f"{self.slots} slots for {self.num_units} units of {format_bytes(self.record)}"),
            ("total", self.total, f"of {format_bytes(self.budget)}"),
        ]
        lines = [f"  {name:<26}{format_bytes(size):>10}  {note}".rstrip() for name, size, note in rows]
        if rates is not None:
            speed = self.tokens_per_second(rates)
            lines.append(f"  expected: {self.hit_rate:.0%} of woken units here, {speed:.2g} tokens/s")
        return "\n".join(lines)


def make_plan(shelf: Shelf, budget: int, *, context: int | None = None, interpreter: int | None = None) -> Plan:
    """Share a budget [bytes] out. Raises BudgetError with the arithmetic, and the least budget that would do."""
    config, organ = shelf.config, shelf.config.experts
    if organ is None:
        raise BudgetError(
            f"{shelf.folder} is dense: every weight wakes for every token, so there is nothing to fetch on demand; "
            "run it without --memory"
        )
    room = min(config.max_position_embeddings, context or CONTEXT)
    sizes, layers = shelf.resident, len(shelf.sparse)
    if shelf.table is not None:
        sizes = {name: size for name, size in sizes.items() if name != EMBEDDING}
    record = record_bytes(shelf.format, config.hidden_size, organ.unit_width, ACTIVATIONS[organ.activation])
    resident = sum(sizes.values())
    attention = config.attention
    assert attention.head_dim is not None
    keys = config.num_hidden_layers * attention.num_key_value_heads * attention.head_dim
    plan = Plan(
        budget=budget,
        interpreter=resident_memory() if interpreter is None else interpreter,
        resident=resident,
        cache=2 * keys * room * shelf.dtype.itemsize,
        scratch=_scratch(config.hidden_size, config.vocab_size, organ, min(room, PROMPT_PIECE)),
        record=record,
        slots=0,
        num_units=layers * organ.num_units,
        sparse_layers=layers,
        awake=most_awake(organ),
        context=room,
        awake_bytes=resident + layers * organ.thalamus.num_awake * record,
    )
    each = UnitPool.bytes_for(record, 1)
    slots = min((budget - plan.total) // each, plan.num_units)
    least = 2 * plan.awake
    if slots < least:
        raise BudgetError(_too_small(plan, each, least))
    return replace(plan, slots=int(slots))


def as_bytes(memory: int | str) -> int:
    """A budget as people write it. Raises BudgetError."""
    try:
        size = parse_bytes(memory) if isinstance(memory, str) else int(memory)
    except ValueError as error:
        raise BudgetError(f"the memory budget: {error}") from error
    if size <= 0:
        raise BudgetError(f"the memory budget is {memory}; it must be more than nothing, as in 4GiB")
    return size


def most_awake(organ: ExpertsConfig) -> int:
    """Units of one layer that a token may wake."""
    thalamus = organ.thalamus
    if thalamus.kind == "threshold":
        return min(organ.num_units, thalamus.max_awake or 2 * thalamus.num_awake)
    return thalamus.num_awake


def resident_memory() -> int:
    """Bytes of this process now, libraries included."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 400 * MIB
    return pages * os.sysconf("SC_PAGE_SIZE")


def _scratch(width: int, vocabulary: int, organ: ExpertsConfig, tokens: int) -> int:
    """A prompt's activations, each thread's packed units and buffers, logits; see source/bank.hpp."""
    threads, hidden = torch.get_num_threads(), ACTIVATIONS[organ.activation].num_parts * organ.unit_width
    rows = tokens * (most_awake(organ) + 12) * width * 4
    desk = 2 * 2 * (hidden + organ.unit_width) * width + 64 * 4 * (2 * hidden + 3 * width)
    return rows + threads * desk + 4 * vocabulary * 4 + _MARGIN


def _too_small(plan: Plan, each: int, least: int) -> str:
    needed = plan.total + least * each
    parts = (
        f"interpreter {format_bytes(plan.interpreter)}",
        f"resident weights {format_bytes(plan.resident)}",
        f"keys and values for {plan.context} tokens {format_bytes(plan.cache)}",
        f"scratch {format_bytes(plan.scratch)}",
        f"{least} slots of {format_bytes(each)}",
    )
    return (
        f"{format_bytes(plan.budget)} are too little: {' + '.join(parts)} = {format_bytes(needed)}; "
        f"give --memory {math.ceil(needed / MIB)}MiB or more"
    )
