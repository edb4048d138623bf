"""The budget of a model: its memory shared out between what always stays and slots for what comes and goes.

    budget = interpreter + resident weights + keys and values + scratch + slots x record

The slots take what the rest leaves. With a GPU, resident weights, keys and values and scratch are on it, and slots in
what it has left; host memory holds further slots:

    vram   = CUDA + resident weights + keys and values + scratch + GPU slots x slot
    budget = interpreter + CUDA + staging + host slots x record

A GPU that cannot hold that much computes the first layers of a sparse model alone, as many as it can hold, and the
host the others (inference/split.py).

What learns is where the model computes, and all of it on the GPU: adapters, their slopes and their moments take the
place of keys and values.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pragnosia.errors import BudgetError
from pragnosia.inference.device_slots import staging_bytes
from pragnosia.inference.nearest import refusal
from pragnosia.inference.plan import HostLayers, Plan
from pragnosia.inference.scratch import most_awake, prompt_scratch, tuning_scratch
from pragnosia.inference.shelf import EMBEDDING
from pragnosia.inference.sizes import Sizes
from pragnosia.inference.split import by_layer, layer_of
from pragnosia.inference.vram import cuda_bytes, vram_scratch, vram_tuning_scratch
from pragnosia.model.slot_organs import slot_bytes
from pragnosia.units import MIB, parse_bytes, perhaps_gib

PAGE_TABLES = 512
"""Bytes that one byte of page tables is for."""
CONTEXT = 4096
"""Tokens that a conversation has room for, unless it is said otherwise."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What a model needs beside its weights, to learn."""

    tokens: int
    """Of one batch."""
    parameters: int
    """Of what learns, fp32, as its slopes are."""
    moment_bytes: float
    """The optimiser's, of one parameter: 8, or 2 where it keeps them in 8 bits."""
    learns: str = "adapters"
    rows: int = 1
    """That share the tokens of a batch; none sees another's."""

    @property
    def learning(self) -> int:
        """Bytes of what learns, slopes and moments."""
        return int(self.parameters * (8 + self.moment_bytes))


def make_plan(  # noqa: PLR0913  what a plan is made of
    sizes: Sizes,
    budget: int,
    *,
    context: int | None = None,
    interpreter: int | None = None,
    tuning: Tuning | None = None,
    vram: int = 0,
    device: torch.device | None = None,
    reserve: int = 0,
) -> Plan:
    """Share a budget [bytes] out, and that of a GPU, `vram` [bytes] of `device` (None: one that is not here).

    `reserve` bytes are for what the caller does with the model, where it computes.
    Raises BudgetError with the arithmetic and what would do.
    """
    most = sizes.config.max_position_embeddings
    if context is not None and context > most:
        raise BudgetError(f"--context is {context} tokens; the model holds at most {most}")
    process = process_memory(budget) if interpreter is None else interpreter

    def drafted(sizes: Sizes, context: int | None) -> Plan:
        plan = _bare(sizes, budget, context, process, tuning, reserve)
        return _filled(_on_gpu(plan, sizes, vram, device, tuning, reserve) if vram else plan)

    plan = drafted(sizes, context)
    if not plan.fits:
        alone = bool(vram) and _filled(_bare(sizes, budget, context, process, tuning, reserve)).fits
        raise BudgetError(
            refusal(plan, sizes, drafted, tables=interpreter is None) + (", or leave --vram out" if alone else "")
        )
    return plan


def longest_context(
    sizes: Sizes,
    budget: int,
    *,
    vram: int = 0,
    interpreter: int | None = None,
    besides: Callable[[int], int] | None = None,
) -> int:
    """The most tokens that a plan within these budgets [bytes] has room for; 0 where none fits.

    `besides` says what so many tokens take of the budget beside the plan.
    """
    process = process_memory(budget) if interpreter is None else interpreter

    def fits(context: int) -> bool:
        plan = _bare(sizes, budget - (besides(context) if besides else 0), context, process, None)
        return _filled(_on_gpu(plan, sizes, vram, None) if vram else plan).fits

    most = int(sizes.config.max_position_embeddings)
    if fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _bare(
    sizes: Sizes, budget: int, context: int | None, interpreter: int, tuning: Tuning | None, reserve: int = 0
) -> Plan:
    """Everything but the slots, in host memory."""
    config, resident, record = sizes.config, sizes.resident, sizes.record
    room = tuning.tokens if tuning else min(config.max_position_embeddings, context or CONTEXT)
    weights = sum(size for name, size in resident.items() if name != EMBEDDING or not sizes.leaves_table)
    organ = None if sizes.is_dense else config.units
    layers = config.num_hidden_layers if organ is None else len(sizes.sparse)
    attention = config.attention
    assert attention.head_dim is not None
    keys = config.num_hidden_layers * attention.num_key_value_heads * attention.head_dim
    return Plan(
        budget=budget,
        interpreter=interpreter,
        resident=weights,
        cache=0 if tuning else 2 * keys * room * sizes.dtype.itemsize + slot_bytes(config, sizes.dtype.itemsize),
        scratch=reserve + (tuning_scratch(sizes, room) if tuning else prompt_scratch(sizes, room)),
        record=record,
        record_read=sizes.record_read,
        slots=0,
        num_units=layers * (1 if organ is None else organ.num_units),
        streamed_layers=layers,
        awake=1 if organ is None else most_awake(organ),
        context=room,
        awake_bytes=weights + layers * record * (1 if organ is None else organ.thalamus.num_awake),
        learning=tuning.learning if tuning else 0,
        learns=tuning.learns if tuning else "",
        dense=organ is None,
    )


def _on_gpu(
    plan: Plan,
    sizes: Sizes,
    vram: int,
    device: torch.device | None,
    tuning: Tuning | None = None,
    reserve: int = 0,
) -> Plan:
    """The same with what computes, and what learns, on a GPU."""
    driver = cuda_bytes(device)
    if tuning is None:
        scratch, saving = vram_scratch(sizes, plan.context, plan.awake), 0
    else:
        scratch = vram_tuning_scratch(sizes, tuning.tokens, tuning.rows, tuning.parameters)
        saving = 4 * tuning.parameters  # a checkpoint comes back through host memory
    there = replace(
        plan,
        vram=vram,
        driver=driver,
        buffers=driver + staging_bytes(plan.record) + saving,
        scratch=scratch + reserve,
    )
    room = vram - there.least_slots * there.vram_each
    if plan.dense or tuning is not None or there.vram_total <= room:
        return there
    split = there  # where even the last does not fit, it is what comes nearest
    for split in _splits(there, plan.scratch, sizes):
        if split.vram_total <= room:
            break
    return split


def _splits(plan: Plan, scratch: int, sizes: Sizes) -> Iterator[Plan]:
    """The plan with ever more of the last layers on the host, which takes `scratch` for them."""
    layers = int(sizes.config.num_hidden_layers)
    weights, banks = by_layer(sizes.resident, layers), [layer_of(name) for name in sizes.sparse]
    resident = 0
    for count in range(1, layers):
        resident += weights[-count]
        sparse = sum(layer is not None and layer >= layers - count for layer in banks)
        yield replace(
            plan,
            host=HostLayers(
                count=count,
                units=sparse * plan.num_units // plan.streamed_layers,
                resident=resident,
                cache=plan.cache * count // layers,
                scratch=scratch,
                awake_bytes=resident + (plan.awake_bytes - plan.resident) * sparse // plan.streamed_layers,
            ),
        )


def _filled(plan: Plan) -> Plan:
    """With as many slots as there is room for, the GPU's first; fewer than none where even the rest has no room."""
    if plan.vram:
        plan = replace(plan, vram_slots=int(min((plan.vram - plan.vram_total) // plan.vram_each, plan.vram_units)))
    return replace(plan, slots=int(min((plan.budget - plan.total) // plan.each, plan.most_slots)))


def as_bytes(memory: int | str) -> int:
    """A budget as people write it. Raises BudgetError."""
    try:
        size = parse_bytes(memory) if isinstance(memory, str) else int(memory)
    except ValueError as error:
        raise BudgetError(f"the memory budget: {error}") from error
    if hint := perhaps_gib(str(memory)):
        raise BudgetError(f"the memory budget is {memory}{hint}")
    if size <= 0:
        raise BudgetError(f"the memory budget is {memory}; it must be more than nothing, as in 4GiB")
    return size


def process_memory(budget: int) -> int:
    """Bytes of this process now, and those that the kernel will take to know where a whole budget lies.

    Page tables are charged to a control group as the pages are: eight bytes for each of 4 KiB.
    """
    return resident_memory() + budget // PAGE_TABLES


def budget_for(total: int) -> int:
    """The least budget that leaves so much beside its page tables."""
    return -(-total * PAGE_TABLES // (PAGE_TABLES - 1))


def resident_memory() -> int:
    """Bytes of this process now, libraries included."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 400 * MIB
    return pages * os.sysconf("SC_PAGE_SIZE")
