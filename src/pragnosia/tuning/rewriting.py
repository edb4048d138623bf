"""A model directory written anew with some of its tensors changed: of the same family, names, layout and precision."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from pragnosia.checkpoints.blueprint import Blueprint
from pragnosia.checkpoints.importing import ORIGIN
from pragnosia.checkpoints.places import Place
from pragnosia.checkpoints.rules import Joined, Rule
from pragnosia.checkpoints.source import Index, Shape, pieces
from pragnosia.checkpoints.travel import carry
from pragnosia.checkpoints.writer import SHARD_BYTES, Entry, write_weights
from pragnosia.tuning.block_files import read_tensor

Pieces = Callable[[], Iterator[Tensor]]
"""One tensor, in row-major pieces."""
Change = Callable[[Rule, int, Pieces], Pieces]
"""What becomes of the `number`th of their tensors that a rule makes ours of, given its pieces as they lie."""
_AT_ONCE = 16 << 20


def changed_entries(plan: Blueprint, names: Collection[str], change: Change) -> list[Entry]:
    """Every tensor of the source as it lies, but what makes up `names`, of ours."""
    changed: dict[str, tuple[Rule, int]] = {}
    for name in names:
        rule = plan.rules[name]
        changed |= {theirs: (rule, number) for number, theirs in enumerate(rule.their_shapes(plan.shapes[name]))}
    source = plan.source
    entries = []
    for name in source.names:
        read: Pieces = partial(pieces, source, name)
        if name in plan.known:
            read = partial(_lying, plan.known[name])
        if name in changed:
            read = change(*changed[name], read)
        entries.append(Entry(name, source.dtype(name), source.shape(name), read))
    return entries


def fill(folder: Path, model_folder: Path, entries: Sequence[Entry], shard_bytes: int = SHARD_BYTES) -> tuple[str, ...]:
    """Weights, tokenizer and, last, the configuration; the names of all files in `folder`."""
    write_weights(folder, entries, shard_bytes)
    carry(model_folder, folder)
    for name in (ORIGIN, "config.json"):
        if (model_folder / name).exists():
            shutil.copyfile(model_folder / name, folder / name)
    return tuple(sorted(path.name for path in folder.iterdir()))


@final
class Tuned:
    """Our tensors as blocks left them, and as they were where no block has been; read in any contiguous part."""

    def __init__(self, plan: Blueprint, whole: Mapping[str, Place], units: Mapping[str, Mapping[int, Place]]) -> None:
        self._plan, self._whole, self._units = plan, whole, units
        self._turned: tuple[str, Tensor] | None = None

    @property
    def names(self) -> Collection[str]:
        """Those of which something was tuned."""
        return [*self._whole, *self._units]

    def file(self, name: str) -> str:
        """In several."""
        return f"what was tuned of {name}"

    def shape(self, name: str) -> Shape:
        """Ours."""
        return self._plan.shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """The source's."""
        return self._plan.dtype(name)

    def read(self, name: str, index: Index = ()) -> Tensor:
        """The part under `index`; a slice may only stand last."""
        shape, first = list(self.shape(name)), 0
        for axis in index:
            stride = _size(shape[1:])
            begin, end, _ = axis.indices(shape[0]) if isinstance(axis, slice) else (axis, 0, 0)
            first += begin * stride
            shape = [end - begin, *shape[1:]] if isinstance(axis, slice) else shape[1:]
        if not isinstance(self._plan.rules[name], Joined) or not self._plan.known:
            return self._in_memory(name).view(-1)[first : first + _size(shape)].view(shape)
        item = self.dtype(name).itemsize
        flat, filled, skip = torch.empty(_size(shape), dtype=self.dtype(name)), 0, first * item
        for place in self._places(name):
            if skip >= place.num_bytes:
                skip -= place.num_bytes
                continue
            count = min((place.num_bytes - skip) // item, len(flat) - filled)
            flat[filled : filled + count] = read_tensor(_part(place, skip, count * item))
            filled, skip = filled + count, 0
            if filled == len(flat):
                break
        return flat.view(shape)

    def _places(self, name: str) -> Iterator[Place]:
        """Where it lies, end to end."""
        if name in self._whole:
            yield self._whole[name]
            return
        for unit in range(self.shape(name)[0]):
            if unit in self._units[name]:
                yield self._units[name][unit]
            elif name.endswith((".up", ".down")):
                for extent in self._plan.unit(name, unit):
                    yield Place(*extent[:3], (), self.dtype(name))
            else:
                whole = [Place(*extent[:3], (), self.dtype(name)) for extent in self._plan.extents(name)]
                yield from _cut(whole, unit, self.shape(name)[0])

    def _in_memory(self, name: str) -> Tensor:
        """Whole, of a layout that has to be turned to become ours."""
        if self._turned is None or self._turned[0] != name:
            self._turned = None
            tensor = read_tensor(self._whole[name]) if name in self._whole else self._plan.read(name)
            for unit, place in self._units.get(name, {}).items():
                tensor[unit] = read_tensor(place).view_as(tensor[unit])
            self._turned = name, tensor
        return self._turned[1]


def _cut(parts: Sequence[Place], unit: int, num_units: int) -> Iterator[Place]:
    """A unit's share of what lies in equal shares, end to end."""
    size = sum(part.num_bytes for part in parts) // num_units
    first, at = unit * size, 0
    for part in parts:
        begin, end = max(first, at), min(first + size, at + part.num_bytes)
        if begin < end:
            yield _part(part, begin - at, end - begin)
        at += part.num_bytes


def _part(place: Place, skip: int, size: int) -> Place:
    return replace(place, offset=place.offset + skip, num_bytes=size, shape=(size // place.dtype.itemsize,))


def _lying(place: Place) -> Iterator[Tensor]:
    """As it lies, and none of it stays in memory."""
    for start in range(0, place.num_bytes, _AT_ONCE):
        yield read_tensor(_part(place, start, min(_AT_ONCE, place.num_bytes - start)))


def _size(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
