"""Layers that lie on disk: of a dense model every weight wakes for every token, so that whole layers come and go.

A layer's matrices are one record of a pool (kernels/pool.py) and are there while one of its two halves computes; the
next layer is read meanwhile. As many as fit stay for good and the others pass through two slots: whoever reads in a
circle has nothing of keeping what was used last. Norms and biases are small and resident.

Prompts run through the modules, which find a layer's matrices in their places while it is `present`. Single tokens run
through the compiled step as those of any model do (inference/program.py): it knows how a record is laid out, and
fetches records by itself (kernels/source/passing.hpp).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from pragnosia.checkpoints.places import Extents
from pragnosia.errors import CheckpointError
from pragnosia.inference.shelf import Stored
from pragnosia.kernels.pool import UnitPool
from pragnosia.model.cortex import Cortex
from pragnosia.quantisation.layers import PackedLinear

PASSING = 2
"""Slots through which layers pass: one computes, the next is read."""


class Layers(Protocol):
    """Where the records of layers come from."""

    pool: UnitPool

    def fetch(self, number: int) -> Tensor:
        """A layer's record, held."""

    def release(self, number: int) -> None:
        """Let go of a layer."""


@final
class LayersOnDisk:
    """The records of a model's layers, and which way the reader goes; those before `first` stay elsewhere."""

    def __init__(self, pool: UnitPool, layers: Sequence[Sequence[Stored]], first: int = 0) -> None:
        self.pool, self.count, self.last, self.step = pool, len(layers), 0, 1
        for number, parts in enumerate(layers):
            extents = [extent for part in parts for extent in part.extents]
            pool.place(number, 0, extents, [one for part in parts for one in part.sums])
        room = pool.slots if first == 0 and pool.slots >= self.count else pool.slots - PASSING
        self.first, self.kept = first, range(first, min(self.count, first + room))
        for number in self.kept:
            self.fetch(number)

    def fetch(self, number: int) -> Tensor:
        """A layer's record, held; then the one that follows in the reader's direction is asked for."""
        try:
            record = self.pool.hold(number, 0)
        except OSError as error:
            raise CheckpointError(f"{error}") from error
        if number != self.last:
            self.step, self.last = (1 if number == 0 or number > self.last else -1), number
            following = (number + self.step) % self.count
            if following >= self.first and following not in self.kept:
                self.pool.ask(following, [0])
        return record

    def release(self, number: int) -> None:
        """Let go of a layer."""
        self.pool.release(number, 0)

    def move(self, number: int, parts: Sequence[Stored]) -> None:
        """A layer has changed and lies elsewhere."""
        kept = number in self.kept
        if kept:
            self.pool.release(number, 0)
        self.pool.move(number, 0, [extent for part in parts for extent in part.extents])
        if kept:
            self.pool.hold(number, 0)


@final
class LayerWeights:
    """One layer's matrices: in their places while `present`, nowhere else."""

    def __init__(self, layers: Layers, number: int, parts: Sequence[Stored], model: nn.Module) -> None:
        self.layers, self.number, self.users = layers, number, 0
        self.parts = list(parts)
        self.own: dict[str, nn.Parameter] = {}
        """What of it is in memory for a while, to learn."""
        # by the module and not by its name: an adapter may come to stand between
        self.owners: list[nn.Module] = [model.get_submodule(part.name.rpartition(".")[0]) for part in parts]

    @property
    def names(self) -> list[str]:
        """Of all its matrices."""
        return [part.name for part in self.parts]

    @contextmanager
    def present(self) -> Iterator[None]:
        """Within the context the layer can compute. Raises CheckpointError where it cannot be read."""
        read = len(self.own) < len(self.parts)
        if self.users == 0 and read:
            self._bind(self.layers.fetch(self.number))
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            if self.users == 0 and read:
                self._bind(None)
                self.layers.release(self.number)

    @property
    def in_reach(self) -> bool:
        """Whether the compiled step can fetch it: it is for the CPU, and none of it learns."""
        return isinstance(self.layers, LayersOnDisk) and self.layers.first == 0 and not self.own

    @property
    def stays(self) -> bool:
        """Whether it is here for good, in reach."""
        return isinstance(self.layers, LayersOnDisk) and self.number in self.layers.kept

    @contextmanager
    def outlined(self) -> Iterator[None]:
        """Within the context its matrices have addresses: what passes, as though it came to the pool's first slot."""
        pool = self.layers.pool
        try:
            self._bind(pool.hold(self.number, 0) if self.stays else pool.first_slot())
            yield
        finally:
            self._bind(None)
            if self.stays:
                pool.release(self.number, 0)

    def take(self, name: str) -> nn.Parameter:
        """A copy of one of its matrices, which stands in its place from now on."""
        with self.present():
            owner = self.owners[self.names.index(name)]
            weight: Any = owner._parameters[name.rpartition(".")[2]]
            own = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.own[name] = own
        self._bind(None)
        return own

    def move(self, extents: Mapping[str, Extents]) -> None:
        """Some of its matrices have changed and lie elsewhere; none is in memory any more."""
        self.own = {}
        self.parts = [replace(part, extents=extents.get(part.name, part.extents)) for part in self.parts]
        assert isinstance(self.layers, LayersOnDisk)  # nothing learns on a device
        self.layers.move(self.number, self.parts)
        self._bind(None)

    def _bind(self, record: Tensor | None) -> None:
        at = 0
        for part, owner in zip(self.parts, self.owners, strict=True):
            if part.name in self.own:
                owner._parameters[part.name.rpartition(".")[2]] = self.own[part.name]
            elif isinstance(owner, PackedLinear):
                owner.rows = _NOTHING if record is None else record[at : at + part.num_bytes].view(part.shape[0], -1)
            else:
                there = torch.empty(part.shape, dtype=part.dtype, device="meta") if record is None else None
                if record is not None:
                    numbers = record[at : at + part.num_bytes].view(part.dtype)
                    there = numbers.view(part.shape[::-1]).t() if part.by_input else numbers.view(part.shape)
                attribute = part.name.rpartition(".")[2]
                owner._parameters[attribute] = nn.Parameter(there, requires_grad=False)  # type: ignore[arg-type]
            at += part.num_bytes


_NOTHING = torch.empty(0, 0, dtype=torch.uint8)


@final
class OnDisk(nn.Module):
    """Stands where a mixer or a feed-forward stands, whose matrices lie on disk."""

    def __init__(self, piece: nn.Module, weights: LayerWeights) -> None:
        super().__init__()
        self.piece, self.weights = piece, weights
        self.present = weights.present

    def forward(self, *given: Any) -> Any:
        """As the piece. Raises CheckpointError where its weights cannot be read."""
        with self.present():
            return self.piece(*given)

    def fresh_memory(self, batch: int, room: int, like: Tensor) -> Any:
        """As the piece, a mixer."""
        return self.piece.fresh_memory(batch, room, like)  # type: ignore[operator]


def put_layers(model: Cortex, layers: Sequence[Sequence[Stored]], store: Layers) -> None:
    """Let every layer of a model come and go."""
    for number, (layer, parts) in enumerate(zip(model.model.layers, layers, strict=True)):
        _make_room(model, parts)
        weights = LayerWeights(store, number, parts, model)
        layer.mixer, layer.feed_forward = OnDisk(layer.mixer, weights), OnDisk(layer.feed_forward, weights)


def coming_and_going(model: nn.Module) -> list[LayerWeights]:
    """The layers of a model that lie on disk."""
    found = {id(module.weights): module.weights for module in model.modules() if isinstance(module, OnDisk)}
    return list(found.values())


def _make_room(model: nn.Module, parts: Sequence[Stored]) -> None:
    """Where rows are packed, layers that compute on them."""
    for part in parts:
        if part.format is not None:
            owner = part.name.rpartition(".")[0]
            bias: Any = getattr(model.get_submodule(owner), "bias", None)
            packed = PackedLinear(_NOTHING, part.format, part.shape[1], None if bias is None else bias.detach())
            packed.out_features = part.shape[0]
            model.set_submodule(owner, packed)
