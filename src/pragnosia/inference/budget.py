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
from pragnosia.inference.device_slots import slot_bytes
from pragnosia.inference.layers import PASSING
from pragnosia.inference.shelf import EMBEDDING, Shelf
from pragnosia.inference.vram import with_vram
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.kernels.cross_entropy import CHUNK_BYTES
from pragnosia.kernels.pool import UnitPool, record_bytes
from pragnosia.model.organs import ExpertsConfig
from pragnosia.units import MIB, format_bytes, parse_bytes

PROMPT_PIECE = 1024
"""Tokens of a prompt that are read at once: more would take more scratch and gain nothing."""
CONTEXT = 4096
"""Tokens that a conversation has room for, unless it is said otherwise."""
_RESIDENTS = "attention, norms, routers, output head"
_PRODUCTS = 96 * MIB  # the code that torch's library of products writes for each shape, and keeps
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
    """Records that come and go: units, or whole layers of a dense model."""
    streamed_layers: int
    awake: int
    """Of each streamed layer, the records that a token may want."""
    context: int
    awake_bytes: int
    """Weights that one token reads."""
    learning: int = 0
    """Adapters, their slopes and moments, where a model is tuned."""
    dense: bool = False
    vram: int = 0
    """Budget of an accelerator, which then holds residents, keys and values, and scratch; 0: there is none."""
    vram_slots: int = 0
    """Records that fit there beside them."""

    @property
    def vram_total(self) -> int:
        """Never above `vram`."""
        here = self.resident + self.cache + self.scratch + slot_bytes(self.record) * self.vram_slots
        return here if self.vram else 0

    @property
    def pool(self) -> int:
        """Memory of the slots."""
        return UnitPool.bytes_for(self.record, self.slots)

    @property
    def total(self) -> int:
        """Never above the budget; what lies on an accelerator is not in it."""
        always = 0 if self.vram else self.resident + self.cache + self.scratch
        return self.interpreter + always + self.learning + self.pool

    @property
    def share(self) -> float:
        """Of all units, those that have a slot."""
        return self.slots / max(self.num_units, 1)

    @property
    def hit_rate(self) -> float:
        """Expected; what really comes depends on the text, but of a dense model, which reads in a circle."""
        if self.dense:
            return 1.0 if self.slots >= self.num_units else (self.slots - PASSING) / self.num_units
        for (low, below), (high, above) in pairwise((*_HITS, (1.0, 1.0))):
            if self.share <= high:
                return below + (above - below) * (self.share - low) / (high - low)
        return 1.0

    def tokens_per_second(self, rates: Rates) -> float:
        """Expected when decoding."""
        computing = self.awake_bytes / rates.memory
        reading = (1 - self.hit_rate) * self.awake * self.streamed_layers * self.record / rates.disk
        return 1 / (computing + reading)

    def table(self, rates: Rates | None = None) -> str:
        """For a person, before anything runs."""
        what = "layers" if self.dense else "units"
        rows = [
            ("interpreter and libraries", self.interpreter, ""),
            ("resident weights", self.resident, "norms, output head" if self.dense else _RESIDENTS),
            ("keys and values", self.cache, f"{self.context} tokens"),
            ("adapters, slopes, moments", self.learning, ""),
            ("activations and scratch", self.scratch, f"{self.context} tokens" if self.learning else ""),
            (what, self.pool, f"{self.slots} slots for {self.num_units} {what} of {format_bytes(self.record)}"),
            ("total", self.total, f"of {format_bytes(self.budget)}"),
        ]
        if self.vram:
            held = slot_bytes(self.record) * self.vram_slots
            rows = [
                *rows[1:3],
                (*rows[4][:2], "and CUDA's own"),
                (f"{what} on the GPU", held, f"{self.vram_slots} slots"),
                ("total on the GPU", self.vram_total, f"of {format_bytes(self.vram)}"),
                (rows[0][0], self.interpreter, "and CUDA's, and staging"),
                *rows[5:],
            ]
        rows = [row for row in rows if row[1]]
        lines = [f"  {name:<26}{format_bytes(size):>10}  {note}".rstrip() for name, size, note in rows]
        if rates is not None:
            speed = self.tokens_per_second(rates)
            lines.append(f"  expected: {self.hit_rate:.0%} of woken {what} here, {speed:.2g} tokens/s")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What a model needs beside its weights, to learn."""

    tokens: int
    """Of one batch."""
    parameters: int
    """Of the adapters, fp32, as their slopes are."""
    moment_bytes: float
    """The optimiser's, of one parameter: 8, or 2 where it keeps them in 8 bits."""

    @property
    def learning(self) -> int:
        """Bytes of adapters, slopes and moments."""
        return int(self.parameters * (8 + self.moment_bytes))


def make_plan(
    shelf: Shelf,
    budget: int,
    *,
    context: int | None = None,
    interpreter: int | None = None,
    tuning: Tuning | None = None,
    vram: int = 0,
    device: torch.device | None = None,
) -> Plan:
    """Share a budget [bytes] out, and that of an accelerator, `vram` [bytes] of `device` (None: a GPU not here).

    Raises BudgetError with the arithmetic, and the least budget that would do.
    """
    config = shelf.config
    room = tuning.tokens if tuning else min(config.max_position_embeddings, context or CONTEXT)
    sizes = shelf.resident
    if shelf.table is not None:
        sizes = {name: size for name, size in sizes.items() if name != EMBEDDING}
    resident, record = sum(sizes.values()), _record(shelf)
    organ = None if shelf.is_dense else config.experts
    layers = config.num_hidden_layers if organ is None else len(shelf.sparse)
    attention = config.attention
    assert attention.head_dim is not None
    keys = config.num_hidden_layers * attention.num_key_value_heads * attention.head_dim
    plan = Plan(
        budget=budget,
        interpreter=resident_memory() if interpreter is None else interpreter,
        resident=resident,
        cache=0 if tuning else 2 * keys * room * shelf.dtype.itemsize,
        scratch=_tuning_scratch(shelf, room) if tuning else _scratch(shelf, min(room, PROMPT_PIECE)),
        record=record,
        slots=0,
        num_units=layers * (1 if organ is None else organ.num_units),
        streamed_layers=layers,
        awake=1 if organ is None else most_awake(organ),
        context=room,
        awake_bytes=resident + layers * record * (1 if organ is None else organ.thalamus.num_awake),
        learning=tuning.learning if tuning else 0,
        dense=organ is None,
    )
    if vram and tuning:
        raise BudgetError("a model does not learn on a GPU within --vram yet; leave --vram out")
    each = UnitPool.bytes_for(record, 1)
    least = min(PASSING if organ is None else 2 * plan.awake, plan.num_units)
    if vram:
        plan = with_vram(plan, shelf, vram, device, least)
    slots = min((budget - plan.total) // each, plan.num_units)
    if slots < least:
        raise BudgetError(_too_small(plan, each, least))
    return replace(plan, slots=int(slots))


def _record(shelf: Shelf) -> int:
    """Bytes of what comes and goes: a unit, or the largest layer."""
    organ = shelf.config.experts
    if shelf.is_dense or organ is None:
        return max(sum(part.num_bytes for part in layer) for layer in shelf.layers())
    return record_bytes(shelf.format, shelf.config.hidden_size, organ.unit_width, ACTIVATIONS[organ.activation])


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


def _scratch(shelf: Shelf, tokens: int) -> int:
    """A prompt's activations, each thread's packed units and buffers, logits; see source/bank.hpp."""
    width, vocabulary, organ = int(shelf.config.hidden_size), int(shelf.config.vocab_size), shelf.config.experts
    if organ is None:
        return tokens * 4 * (12 * width + 3 * _widest(shelf)) + 4 * vocabulary * 4 + _MARGIN
    threads, hidden = torch.get_num_threads(), ACTIVATIONS[organ.activation].num_parts * organ.unit_width
    rows = tokens * (most_awake(organ) + 12) * width * 4
    desk = 2 * 2 * (hidden + organ.unit_width) * width + 64 * 4 * (2 * hidden + 3 * width)
    return int(rows + threads * desk) + 4 * vocabulary * 4 + _MARGIN


def _widest(shelf: Shelf) -> int:
    """Hidden values of a dense feed-forward, its gates included; 0 where there is none."""
    dense = shelf.config.feed_forward
    return int(ACTIVATIONS[dense.activation].num_parts * dense.width) if dense else 0


def _tuning_scratch(shelf: Shelf, tokens: int) -> int:
    """What is kept of each layer, what the layer at work needs, the logits' chunk and an output head made plain."""
    config, item = shelf.config, shelf.dtype.itemsize
    width, heads = int(config.hidden_size), int(config.attention.num_heads * (config.attention.head_dim or 0))
    kept = 3 * int(config.num_hidden_layers) * tokens * width * item
    at_work = tokens * (16 * width + 12 * heads + 4 * _widest(shelf)) * item + tokens * 4 * width * 4
    unit = 0
    if config.experts is not None and not shelf.is_dense:
        organ = config.experts
        parts = ACTIVATIONS[organ.activation].num_parts + 1
        unit = 2 * 2 * parts * organ.unit_width * width + tokens * 4 * (6 * width + 6 * parts * organ.unit_width)
        unit *= torch.get_num_threads()
    head = int(config.vocab_size) * width * 2 if shelf.format.plain_dtype is None else 0
    return kept + at_work + unit + head + 2 * CHUNK_BYTES + _PRODUCTS + _MARGIN


def _too_small(plan: Plan, each: int, least: int) -> str:
    needed = plan.total + least * each
    here = not plan.vram
    parts = (
        f"interpreter {format_bytes(plan.interpreter)}",
        f"resident weights {format_bytes(plan.resident)}" if here else "",
        f"keys and values for {plan.context} tokens {format_bytes(plan.cache)}" if plan.cache and here else "",
        f"adapters, slopes and moments {format_bytes(plan.learning)}" if plan.learning else "",
        f"activations and scratch {format_bytes(plan.scratch)}" if here else "",
        f"{least} slots of {format_bytes(each)}",
    )
    return (
        f"{format_bytes(plan.budget)} are too little: {' + '.join(filter(None, parts))} = {format_bytes(needed)}; "
        f"give --memory {math.ceil(needed / MIB)}MiB or more"
    )
