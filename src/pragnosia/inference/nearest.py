"""The refusal of a budget that is too small, and the nearest plans that would fit.

Three ways out, each by itself: more memory, a shorter context, fewer bits a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pragnosia.inference.sizes import Described, Sizes, as_if_packed
from pragnosia.kernels.formats import FORMATS
from pragnosia.quantisation.index import is_packed
from pragnosia.quantisation.sizes import SMALLER
from pragnosia.units import MIB, format_bytes, told_apart

if TYPE_CHECKING:
    from pragnosia.inference.plan import Plan

_VARIES = 8 * MIB  # what the interpreter takes is a little more or less each time it starts
Draft = Callable[[Sizes, int | None], "Plan"]
"""A plan for a model and a context, whether or not it fits."""


def refusal(plan: Plan, sizes: Sizes, drafted: Draft, *, tables: bool = False) -> str:
    """One line: the arithmetic, and what would do. `drafted(sizes, context)` are plans of the same budgets.

    `tables` says that the plan counts the budget's page tables.
    """
    on_gpu = _on_gpu(plan)
    least, each = plan.least_slots, plan.vram_each if on_gpu else plan.each
    parts = [_part("CUDA", plan.driver) if on_gpu else f"interpreter {format_bytes(plan.interpreter)}"]
    if on_gpu or not plan.vram:
        parts += [
            f"resident weights {format_bytes(plan.resident - plan.host.resident)}",
            _part(f"keys and values for {plan.context} tokens", plan.cache - plan.host.cache),
            _part(f"{plan.learns}, slopes and moments", plan.learning),
            f"activations and scratch {format_bytes(plan.scratch)}",
        ]
    else:
        parts.append(_part("CUDA's share and staging", plan.buffers))
        parts.append(_part(f"the last {plan.host.count} layers", plan.host.total))
    parts.append(_part("rows of long-term memory", 0 if on_gpu else plan.row_pool))
    parts.append(f"{least} slots of {format_bytes(each)}")
    option, needed = "--vram" if on_gpu else "--memory", _needed(plan, on_gpu)
    given, all_of_it = told_apart(plan.vram if on_gpu else plan.budget, needed)
    given += " of the GPU's memory" if on_gpu else ""
    larger = (needed - plan.budget) // 511 if tables else 0  # what page tables of a larger budget take beside
    enough = needed if on_gpu else needed + larger + _VARIES
    why = "" if on_gpu else f", {format_bytes(_VARIES)} of it to spare"
    more = f"give {option} {_whole(enough)} or more{why}"
    ways = [more, *_shorter(plan, sizes, drafted), *_smaller(plan, sizes, drafted)]
    return f"{given} are too little: {' + '.join(filter(None, parts))} = {all_of_it}; {', or '.join(ways)}"


def _shorter(plan: Plan, sizes: Sizes, drafted: Draft) -> Iterator[str]:
    """The longest context that fits, if there is one; a model that learns has its batch and no context."""
    if not plan.cache or not drafted(sizes, 1).fits:
        return
    fits, fails = 1, plan.context
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if drafted(sizes, middle).fits else (fits, middle)
    yield f"--context {fits} or less"


def _smaller(plan: Plan, sizes: Sizes, drafted: Draft) -> Iterator[str]:
    """The next smaller format that fits, if there is one."""
    for name in SMALLER:
        if FORMATS[name].bits >= sizes.format.bits:
            continue
        described = as_if_packed(sizes, name)
        packed = drafted(described, plan.context)
        if packed.fits:
            # of the GPU's memory where that was lacking
            needs = f"which needs {_whole(_needed(packed, _on_gpu(plan)))}"
            yield f"--format {name}, {needs}" if isinstance(sizes, Described) else _packing(sizes, name, needs)
            return


def _packing(sizes: Sizes, name: str, needs: str) -> str:
    """How to get there from a directory; packed rows are not packed again."""
    if is_packed(Path(sizes.name)):
        return f"pack the model it was made from: pragnosia pack SOURCE OUT --format {name}, {needs}"
    return f"pack it: pragnosia pack {sizes.name} OUT --format {name}, {needs}"


def _on_gpu(plan: Plan) -> bool:
    """Whether it is the GPU that holds too little."""
    return bool(plan.vram) and plan.vram_slots < plan.least_slots


def _needed(plan: Plan, on_gpu: bool) -> int:
    """The least budget, all else being equal."""
    if on_gpu:
        return replace(plan, vram_slots=plan.least_slots).vram_total
    return replace(plan, slots=plan.least_slots).total


def _part(what: str, size: int) -> str:
    return f"{what} {format_bytes(size)}" if size else ""


def _whole(size: int) -> str:
    return f"{math.ceil(size / MIB)}MiB"
