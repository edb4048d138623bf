"""The plan: what of a model stays in memory, what is fetched when it wakes, and how fast that will be.

    budget = interpreter + resident weights + keys and values + scratch + slots x record

The slots take what the rest leaves. With a GPU, resident weights, keys and values and scratch are on it, and slots in
what it has left; host memory holds further slots. A token wakes A units in each of L sparse layers; a share h of them
(the hit rate) is here, the others are read:

    seconds per token = awake bytes / memory rate + (1 - h) A L record / disk rate

and with a GPU, of whose slots a share g of the woken units is found (the memory is then its own):

                      + (1 - g) A L record / link rate

What is here is computed while the rest is on its way, yet on two cores that hides nothing that can be measured: the
threads that read take from those that compute (benchmarks/budget/forecast.py).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from pragnosia.errors import BudgetError
from pragnosia.inference.hits import CENTRAL, HIGH, LOW, Curve, hits
from pragnosia.inference.layers import PASSING
from pragnosia.inference.nearest import refusal
from pragnosia.inference.scratch import most_awake, speaking_scratch, tuning_scratch
from pragnosia.inference.shelf import EMBEDDING
from pragnosia.inference.sizes import Sizes
from pragnosia.kernels.pool import UnitPool
from pragnosia.units import MIB, format_bytes, parse_bytes

PROMPT_PIECE = 1024
"""Tokens of a prompt that are read at once: more would take more scratch and gain nothing."""
CONTEXT = 4096
"""Tokens that a conversation has room for, unless it is said otherwise."""
_RESIDENTS = "attention, norms, routers, output head"
DRIVER = 512 * MIB
"""What a GPU's driver and libraries are assumed to keep for one process, of its memory and once more of the host's."""
STAGING = 32 * MIB
"""Most that units on their way to a GPU take in buffers that it can read by itself."""
_ALIGNMENT = 256  # bytes: where a slot on a GPU begins


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Bytes per second that this machine reads."""

    memory: float
    disk: float
    vram: float = 300e9
    """The GPU its own memory: what a GPU of 2020's middle class reads."""
    link: float = 12e9
    """From host memory to the GPU: PCIe 3 with 16 lanes, less what its protocol takes."""
    assumed: tuple[str, ...] = ()
    """Those of the four that nobody measured or gave."""


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
    """In host memory."""
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
    """The GPU's budget; 0 where the host computes. Else residents, keys and values and scratch lie there."""
    vram_slots: int = 0
    """On the GPU; a unit that has one needs none in host memory for long."""
    driver: int = 0
    """Of the GPU's memory, what is not ours."""
    buffers: int = 0
    """Host memory that a GPU needs beside the slots: its driver's share, and where units change ship."""

    @property
    def each(self) -> int:
        """Bytes of a slot in host memory."""
        return UnitPool.bytes_for(self.record, 1)

    @property
    def vram_each(self) -> int:
        """Bytes of a slot on the GPU."""
        return -(-self.record // _ALIGNMENT) * _ALIGNMENT

    @property
    def pool(self) -> int:
        """Host memory of the slots."""
        return UnitPool.bytes_for(self.record, max(self.slots, 0))

    @property
    def vram_pool(self) -> int:
        """GPU memory of its slots."""
        return self.vram_each * max(self.vram_slots, 0)

    @property
    def computing(self) -> int:
        """What lies where the model computes, slots apart."""
        return self.resident + self.cache + self.scratch

    @property
    def total(self) -> int:
        """Of host memory; never above the budget."""
        return self.interpreter + self.buffers + self.learning + self.pool + (0 if self.vram else self.computing)

    @property
    def vram_total(self) -> int:
        """Of the GPU's memory; never above its budget."""
        return self.driver + self.computing + self.vram_pool if self.vram else 0

    @property
    def least_slots(self) -> int:
        """What a layer needs at once and what the next reads meanwhile: on the GPU, and on the way there in memory."""
        return min(PASSING if self.dense else 2 * self.awake, self.num_units)

    @property
    def fits(self) -> bool:
        """Whether both budgets hold what has to be there."""
        return self.slots >= self.least_slots and (not self.vram or self.vram_slots >= self.least_slots)

    @property
    def share(self) -> float:
        """Of all units, those that have a slot, here or there."""
        return min((self.slots + self.vram_slots) / max(self.num_units, 1), 1.0)

    def hits(self, curve: Curve = CENTRAL) -> tuple[float, float]:
        """Of woken units, those expected on the GPU, and those on the GPU or in memory (inference/hits.py)."""
        if self.dense:  # which reads in a circle: what stays is known
            stays = _kept(self.vram_slots, self.num_units)
            all_stay = stays + _kept(self.slots, self.num_units - stays)
            return stays / self.num_units, all_stay / self.num_units
        near = hits(self.vram_slots / max(self.num_units, 1), curve) if self.vram_slots else 0.0
        return near, hits(self.share, curve)

    @property
    def hit_rate(self) -> float:
        """Expected to be on the GPU or in memory, what really comes depends on model and text: see `hit_range`."""
        return self.hits()[1]

    @property
    def vram_hit_rate(self) -> float:
        """Expected to be on the GPU."""
        return self.hits()[0]

    @property
    def hit_range(self) -> tuple[float, float]:
        """Of a model whose load is spread evenly, and of one that keeps to a few units."""
        return self.hits(LOW)[1], self.hits(HIGH)[1]

    def tokens_per_second(self, rates: Rates, curve: Curve = CENTRAL) -> float:
        """Expected when decoding."""
        near, here = self.hits(curve)
        woken = self.awake * self.streamed_layers * self.record
        seconds = self.awake_bytes / (rates.vram if self.vram else rates.memory) + (1 - here) * woken / rates.disk
        if self.vram:
            seconds += (1 - near) * woken / rates.link
        return 1 / seconds

    def speed_range(self, rates: Rates) -> tuple[float, float]:
        """Tokens per second at the two ends of `hit_range`."""
        return self.tokens_per_second(rates, LOW), self.tokens_per_second(rates, HIGH)

    def table(self, rates: Rates | None = None) -> str:
        """For a person, before anything runs."""
        what = "layers" if self.dense else "units"
        slots = f"slots for {self.num_units} {what} of {format_bytes(self.record)}"
        host = [
            ("interpreter and libraries", self.interpreter, ""),
            ("CUDA's share and staging", self.buffers, "assumed"),
            ("adapters, slopes, moments", self.learning, ""),
        ]
        computing = [
            ("resident weights", self.resident, "norms, output head" if self.dense else _RESIDENTS),
            ("keys and values", self.cache, f"{self.context} tokens"),
            ("activations and scratch", self.scratch, f"{self.context} tokens" if self.learning else ""),
        ]
        pool = (what, self.pool, f"{self.slots} {slots}")
        total = ("total", self.total, f"of {format_bytes(self.budget)}")
        if self.vram:
            lines = ["  on the GPU", *_lines([("CUDA", self.driver, "assumed"), *computing])]
            lines += _lines([(what, self.vram_pool, f"{self.vram_slots} {slots}")])
            lines += _lines([("total", self.vram_total, f"of {format_bytes(self.vram)}")])
            lines += ["  in memory", *_lines([*host, pool, total])]
        else:
            lines = _lines([*host[:1], *computing[:2], *host[1:], computing[2], pool, total])
        if rates is not None:
            lines.append(f"  expected: {self._expected(what)}, {_span(*self.speed_range(rates))} tokens/s")
        return "\n".join(lines)

    def _expected(self, what: str) -> str:
        """Where woken units are."""
        low, high = self.hit_range
        words = f"{self.hit_rate:.0%} of woken {what} here"
        if f"{low:.0%}" != f"{high:.0%}":
            words += f" ({low:.0%} to {high:.0%})"
        return words + (f", {self.vram_hit_rate:.0%} on the GPU" if self.vram else "")


def _kept(slots: int, count: int) -> int:
    """Of layers that pass in a circle, those that stay for good."""
    return count if slots >= count else max(slots - PASSING, 0)


def _lines(rows: list[tuple[str, int, str]]) -> list[str]:
    return [f"  {name:<26}{format_bytes(size):>10}  {note}".rstrip() for name, size, note in rows if size]


def _span(low: float, high: float) -> str:
    """`2` where both ends read alike."""
    ends = [f"{end:.2g}" if end < 100 else f"{end:.0f}" for end in (low, high)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


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
    sizes: Sizes,
    budget: int,
    *,
    context: int | None = None,
    interpreter: int | None = None,
    tuning: Tuning | None = None,
    vram: int = 0,
) -> Plan:
    """Share a budget [bytes] out, and `vram`, the GPU's. Raises BudgetError with the arithmetic and what would do."""
    process = resident_memory() if interpreter is None else interpreter

    def drafted(sizes: Sizes, context: int | None) -> Plan:
        return _filled(_bare(sizes, budget, context, process, tuning, vram))

    plan = drafted(sizes, context)
    if not plan.fits:
        raise BudgetError(refusal(plan, sizes, drafted))
    return plan


def _bare(sizes: Sizes, budget: int, context: int | None, interpreter: int, tuning: Tuning | None, vram: int) -> Plan:
    """Everything but the slots."""
    config, resident, record = sizes.config, sizes.resident, sizes.record
    room = tuning.tokens if tuning else min(config.max_position_embeddings, context or CONTEXT)
    weights = sum(size for name, size in resident.items() if name != EMBEDDING or not sizes.leaves_table)
    organ = None if sizes.is_dense else config.experts
    layers = config.num_hidden_layers if organ is None else len(sizes.sparse)
    attention = config.attention
    assert attention.head_dim is not None
    keys = config.num_hidden_layers * attention.num_key_value_heads * attention.head_dim
    return Plan(
        budget=budget,
        interpreter=interpreter,
        resident=weights,
        cache=0 if tuning else 2 * keys * room * sizes.dtype.itemsize,
        scratch=tuning_scratch(sizes, room) if tuning else speaking_scratch(sizes, min(room, PROMPT_PIECE)),
        record=record,
        slots=0,
        num_units=layers * (1 if organ is None else organ.num_units),
        streamed_layers=layers,
        awake=1 if organ is None else most_awake(organ),
        context=room,
        awake_bytes=weights + layers * record * (1 if organ is None else organ.thalamus.num_awake),
        learning=tuning.learning if tuning else 0,
        dense=organ is None,
        vram=vram,
        driver=DRIVER if vram else 0,
        buffers=DRIVER + STAGING if vram else 0,
    )


def _filled(plan: Plan) -> Plan:
    """With as many slots as there is room for, the GPU's first; fewer than none where even the rest has no room."""
    if plan.vram:
        plan = replace(plan, vram_slots=min((plan.vram - plan.vram_total) // plan.vram_each, plan.num_units))
    slots = (plan.budget - plan.total) // plan.each
    most = max(plan.num_units - max(plan.vram_slots, 0), plan.least_slots)
    return replace(plan, slots=int(min(slots, most)))


def as_bytes(memory: int | str) -> int:
    """A budget as people write it. Raises BudgetError."""
    try:
        size = parse_bytes(memory) if isinstance(memory, str) else int(memory)
    except ValueError as error:
        raise BudgetError(f"the memory budget: {error}") from error
    if size <= 0:
        raise BudgetError(f"the memory budget is {memory}; it must be more than nothing, as in 4GiB")
    return size


def resident_memory() -> int:
    """Bytes of this process now, libraries included."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 400 * MIB
    return pages * os.sysconf("SC_PAGE_SIZE")
