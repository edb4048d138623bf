"""The plan of an accelerator's memory: what a token always needs lies there, the rest are slots for units.

    vram   = context + resident weights + keys and values + scratch + device slots x slot
    budget = interpreter + context + staging + host slots x record

No figure here was measured on a GPU: what CUDA takes for itself is an allowance, and scratch is an upper bound for
torch's plainest attention, which holds all scores of a piece of the prompt.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pragnosia.errors import BudgetError
from pragnosia.inference.device_slots import slot_bytes, staging_bytes
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.kernels.formats import MANY_AT_ONCE
from pragnosia.units import MIB, format_bytes

if TYPE_CHECKING:
    from pragnosia.inference.budget import Plan
    from pragnosia.inference.shelf import Shelf

CONTEXT = 512 * MIB  # allowance for CUDA and its libraries, once on the device and once in host memory
SCORES = 256 * MIB  # most that the attention scores of one piece of a prompt may take
LONGEST_PIECE = 1024  # tokens of a prompt that are read at once
MARGIN = 64 * MIB  # what torch's allocator keeps in its bins, and the workspace of its products
_UNPACKING = 24  # bytes that a weight takes while it is unpacked: its codes, whole numbers, and two floats


def accelerator() -> torch.device:
    """The GPU that torch sees. Raises BudgetError where it sees none."""
    if not torch.cuda.is_available():
        raise BudgetError("--vram needs a GPU; torch sees none: leave it out, or install a build of torch for your GPU")
    return torch.device("cuda", torch.cuda.current_device())


def check_vram(memory: int | str | None, adapter: object) -> None:
    """Raise BudgetError for what a budget of an accelerator does not go with."""
    if memory is None:
        raise BudgetError("--vram is the GPU's share beside --memory, the host's; give both")
    if adapter is not None:
        raise BudgetError("adapters do not run within --vram yet; leave it out, or merge the adapter into the model")


def prompt_piece(config: Any, room: int) -> int:
    """Tokens of a prompt to read at once on a device, so that their scores against `room` keys stay within bounds."""
    each = 2 * 4 * int(config.attention.num_heads) * max(room, 1)
    return max(1, min(LONGEST_PIECE, SCORES // each))


def with_vram(plan: Plan, shelf: Shelf, vram: int, device: torch.device | None, least: int) -> Plan:
    """A plan without slots, shared out between host and device; at least `least` device slots.

    `device` is None for a GPU that is not here. Raises BudgetError with the arithmetic, and what would do.
    """
    context = 0 if device is not None and device.type == "cpu" else CONTEXT
    shared = replace(
        plan,
        interpreter=plan.interpreter + context + staging_bytes(plan.record),
        scratch=context + _scratch(shelf, plan.context, plan.awake),
        vram=vram,
    )
    slots = min((vram - shared.vram_total) // slot_bytes(plan.record), plan.num_units)
    if slots < least:
        raise BudgetError(_too_small(shared, context, least))
    return replace(shared, vram_slots=int(slots))


def _scratch(shelf: Shelf, room: int, awake: int) -> int:
    """A prompt's activations in single precision, a unit's hidden values, scores, logits, and units being unpacked."""
    config, piece = shelf.config, min(room, prompt_piece(shelf.config, room))
    width, organ, dense = int(config.hidden_size), config.experts, config.feed_forward
    widths = [ACTIVATIONS[organ.activation].num_parts * organ.unit_width * max(1, organ.num_shared)] if organ else []
    widths += [ACTIVATIONS[dense.activation].num_parts * dense.width] if dense else []
    heads = config.attention.num_heads * (config.attention.head_dim or 0)
    rows = piece * 4 * ((awake + 12) * width + 3 * max(widths) + 4 * heads)
    scores = 2 * 4 * int(config.attention.num_heads) * piece * room
    unpacking = 0
    if shelf.format.plain_dtype is None:
        unit = max(widths) * 2 * width  # of a unit's weights, at most
        unpacking = MANY_AT_ONCE * (_UNPACKING + 4) + 2 * 4 * min(unit, MANY_AT_ONCE)
    return int(rows + scores + unpacking + 4 * 4 * config.vocab_size) + MARGIN


def _too_small(plan: Plan, context: int, least: int) -> str:
    each = slot_bytes(plan.record)
    needed = plan.vram_total + least * each
    parts = (
        f"CUDA {format_bytes(context)}" if context else "",
        f"resident weights {format_bytes(plan.resident)}",
        f"keys and values for {plan.context} tokens {format_bytes(plan.cache)}",
        f"activations and scratch {format_bytes(plan.scratch - context)}",
        f"{least} slots of {format_bytes(each)}",
    )
    return (
        f"{format_bytes(plan.vram)} of the GPU's memory are too little: {' + '.join(filter(None, parts))} = "
        f"{format_bytes(needed)}; give --vram {math.ceil(needed / MIB)}MiB or more, or a shorter --context"
    )
