"""A `device_map` that spreads a model over several places, in budgets: accelerate's words in the terms of our tiers.

    a GPU and the CPU      vram that holds what the map puts on the GPU, memory for the rest
    the CPU and the disk   memory that holds what it puts on the CPU
    the disk alone         the least memory

Which unit or layer is where changes here from token to token, so that a map says how much is where, not what. What
every token needs (attention of a mixture, norms, the output head) is always where the model computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pragnosia.errors import UserError
from pragnosia.inference import budget
from pragnosia.inference.budget import make_plan
from pragnosia.inference.choices import DeviceMap, spread_places
from pragnosia.inference.loading import check_device
from pragnosia.inference.shelf import Shelf, open_shelf
from pragnosia.units import MIB

_NO_LIMIT = 1 << 60
_SLACK = 16 * MIB  # by which the process may grow until it is loaded


@dataclass(frozen=True)
class Spread:
    """Bytes of host memory, and of a GPU where there is one."""

    memory: int
    vram: int = 0
    gpu: str | None = None


def spread_budgets(directory: str | Path, places: Mapping[str, str], context: int | None = None) -> Spread:
    """Budgets for a map of module names to "cpu", "disk" and at most one GPU.

    Raises UserError for a module without a place, CheckpointError for a model whose units are not read one by one.
    """
    shelf = open_shelf(directory)
    sizes = _sizes(shelf, places)
    gpu = next((place for place in places.values() if place not in ("cpu", "disk")), None)
    device = None if gpu is None else torch.device(gpu)
    there = budget.resident_memory()
    limit = _NO_LIMIT if gpu else 0
    plan = make_plan(shelf, _NO_LIMIT, context=context, vram=limit, device=device, interpreter=there)
    slots = {place: -(-size // plan.record) for place, size in sizes.items()}
    if gpu is not None:
        plan = replace(plan, vram_slots=min(max(slots.get(gpu, 0), plan.least_slots), plan.num_units))
    plan = replace(plan, slots=min(max(slots.get("cpu", 0), plan.least_slots), plan.most_slots))
    return Spread(budget.budget_for(plan.total) + _SLACK, plan.vram_total, gpu)


def _sizes(shelf: Shelf, places: Mapping[str, str]) -> dict[str, int]:
    """By place, the bytes of what comes and goes."""
    if shelf.is_dense:
        parts = [(part.name, part.num_bytes) for layer in shelf.layers() for part in layer]
    else:
        units = shelf.config.units
        assert units is not None
        parts = [(bank, units.num_units * shelf.record) for bank in shelf.sparse]
    sizes: dict[str, int] = {}
    for name, size in parts:
        place = _place(name, places)
        sizes[place] = sizes.get(place, 0) + size
    return sizes


def _place(name: str, places: Mapping[str, str]) -> str:
    """Of the longest entry that the name begins with, by ours or by transformers' name of a layer's halves."""
    theirs = name.replace(".mixer", ".self_attn").replace(".feed_forward", ".mlp")
    names = (name, theirs, theirs.replace(".mlp", ".block_sparse_moe"))
    entries = [key for key in places if key == "" or any(f"{known}.".startswith(f"{key}.") for known in names)]
    if not entries:
        raise UserError(f'device_map has no place for {theirs}; name its layer, or give the rest one: {{"": "cpu"}}')
    return places[max(entries, key=len)]


def budgets_of(
    directory: str | Path,
    device_map: DeviceMap,
    memory: int | str | None,
    vram: int | str | None,
    context: int | None,
) -> tuple[int | str | None, int | str | None, DeviceMap]:
    """Of a map over several places budgets of host and GPU, and the device; what was given as a budget stays."""
    places = spread_places(device_map)
    if places is None:
        return memory, vram, device_map
    for gpu in set(places.values()) - {"cpu", "disk"}:
        check_device(gpu)
    meant = spread_budgets(directory, places, context)
    device = meant.gpu or "cpu"
    return meant.memory if memory is None else memory, (meant.vram or None) if vram is None else vram, device
