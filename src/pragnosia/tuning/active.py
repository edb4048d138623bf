"""A frozen model of which one block at a time is taken out to learn, and put back.

    take      a block's weights become fp32 parameters; whatever computes with them casts them to the model's type
    release   nothing learns
    put       the model takes a block's weights from a file: what is resident is copied, what is streamed reads there

Everything that is not resident stays where it lies, in memory or on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from pragnosia.checkpoints.places import Extents, Place, places_in, read_place
from pragnosia.kernels.blocks import Extent
from pragnosia.model.bank import Bank
from pragnosia.model.cortex import Cortex
from pragnosia.model.sparse import SparseFeedForward
from pragnosia.tuning.block_files import read_tensor
from pragnosia.tuning.blocks import Block, Part
from pragnosia.tuning.own_units import OwnUnits, TunedBank
from pragnosia.tuning.recompute import recompute
from pragnosia.tuning.units import UnitsInMemory, UnitsOnDisk

MATRICES = ("up", "down")


class ComingAndGoing(Protocol):
    """Matrices that are in their places only while something computes with them (inference/layers.py)."""

    @property
    def names(self) -> Collection[str]:
        """Of all of them."""

    def take(self, name: str) -> nn.Parameter:
        """A copy of one, which stands in its place from now on."""

    def move(self, extents: Mapping[str, Extents]) -> None:
        """Some have changed and lie elsewhere; no copy stands anywhere any more."""


@final
class TunedModel:
    """A model, resident or streamed, that learns block by block. Its layers keep only what goes into them."""

    def __init__(self, model: Cortex, layers: Iterable[ComingAndGoing] = ()) -> None:
        model.requires_grad_(requires_grad=False)
        self.model = model
        self.banks: dict[str, TunedBank] = {}
        self.in_memory: dict[str, Bank] = {}
        for path, experts in [named for named in model.named_modules() if isinstance(named[1], SparseFeedForward)]:
            self._wrap(f"{_plain(path)}.bank", experts)
        for former, latter in pairwise(self.banks.values()):
            former.after, latter.before = (latter,), (former,)
        # by the module and not by its name: others will come to stand between
        self.owners = {_plain(path): module for path, module in model.named_modules()}
        self.layers = {name: layer for layer in layers for name in layer.names}
        recompute(model)
        self._undo: list[Callable[[], Any]] = []
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def _wrap(self, name: str, experts: Any) -> None:
        bank = experts.bank
        self.banks[name] = experts.bank = TunedBank(bank)
        if isinstance(bank, Bank):
            self.in_memory[name] = bank

    def take(self, block: Block, masters: Mapping[str, Tensor] | None = None) -> dict[str, nn.Parameter]:
        """What learns, in fp32 and by name: as `masters` has it, or as the model stands."""
        assert not self._undo, "another block is out"
        learning: dict[str, nn.Parameter] = {}
        banks: dict[str, list[Part]] = {}
        for part in block.parts:
            if part.bank is None:
                learning[part.tensor] = self._take_weight(part.tensor)
            else:
                banks.setdefault(part.bank, []).append(part)
        for name, parts in banks.items():
            learning |= self._take_units(name, parts)
        if masters is not None:
            with torch.no_grad():
                for name, weight in learning.items():
                    weight.copy_(masters[name])
        self.sync()
        hook = self.model.model.layers[block.layer].register_forward_pre_hook(_begin_slopes)
        self._undo.append(hook.remove)
        return learning

    @torch.no_grad()
    def sync(self) -> None:
        """What has moved is seen by whoever computes with a copy."""
        for weight, master in self._pairs:
            weight.copy_(master)

    def release(self) -> None:
        """Nothing learns; what was streamed is let go of, so that `put` has to follow."""
        for undo in self._undo:
            undo()
        self._undo, self._pairs = [], []

    @torch.no_grad()
    def put(self, block: Block, path: Path) -> None:
        """Take a block's weights from a file, now and whenever they are wanted. Raises CheckpointError."""
        places = places_in(path)
        moved: dict[int, tuple[ComingAndGoing, dict[str, Extents]]] = {}
        banks: dict[str, Part] = {}
        for part in block.parts:
            place = places[part.tensor]
            if part.bank is not None:
                banks[part.bank] = part
                if not part.tensor.endswith(MATRICES):
                    self._rows(part).copy_(read_tensor(place))
            elif part.tensor in self.layers:
                weights = self.layers[part.tensor]
                extents = moved.setdefault(id(weights), (weights, {}))[1]
                extents[part.tensor] = [Extent(place.file, place.offset, place.num_bytes)]
            else:
                _read_into(self._weight(part.tensor), place)
        for weights, extents in moved.values():
            weights.move(extents)
        for name, part in banks.items():
            self._put_units(name, part, places)

    def _weight(self, tensor: str) -> nn.Parameter:
        owner, _, attribute = tensor.rpartition(".")
        weight = self.owners[owner]._parameters[attribute]
        assert isinstance(weight, nn.Parameter), tensor
        return weight

    def _take_weight(self, tensor: str) -> nn.Parameter:
        """In the model's place a weight that has slopes; itself where it is fp32, else a copy learns for it."""
        weight = self.layers[tensor].take(tensor) if tensor in self.layers else self._weight(tensor)
        weight.requires_grad = True

        def freeze() -> None:
            weight.requires_grad, weight.grad = False, None

        self._undo.append(freeze)
        if weight.dtype is torch.float32:
            return weight
        master = nn.Parameter(weight.detach().float())
        self._pairs.append((weight, master))

        def hand_over(_: Tensor) -> None:
            slope, weight.grad = weight.grad, None
            assert slope is not None
            master.grad = slope.float() if master.grad is None else master.grad.add_(slope)

        self._undo.append(weight.register_post_accumulate_grad_hook(hand_over).remove)
        return master

    @torch.no_grad()
    def _take_units(self, name: str, parts: list[Part]) -> dict[str, nn.Parameter]:
        bank, first, count = self.banks[name], parts[0].first, parts[0].shape[0]
        assert first is not None
        own = {part.tensor.rpartition(".")[2]: torch.empty(part.shape) for part in parts}

        def copy(unit: int, up: Tensor, down: Tensor) -> None:
            own["up"][unit - first].copy_(up)
            own["down"][unit - first].copy_(down)

        for _ in bank.units.frozen.each(range(first, first + count), copy):
            pass
        for part in parts:
            if not part.tensor.endswith(MATRICES):
                own[part.tensor.rpartition(".")[2]].copy_(self._rows(part))
        learning = {short: nn.Parameter(tensor) for short, tensor in own.items()}
        bank.units.own = OwnUnits(first, learning)

        def leave() -> None:
            bank.units.own = None

        self._undo.append(leave)
        return {f"{name}.{short}": weight for short, weight in learning.items()}

    def _rows(self, part: Part) -> Tensor:
        """The units' rows of a bias, or of a bank that is in memory."""
        assert part.bank is not None
        assert part.first is not None
        short = part.tensor.rpartition(".")[2]
        holder = self.in_memory[part.bank] if short in MATRICES else self.banks[part.bank]
        whole: Tensor = getattr(holder, short).detach()
        return whole[part.first : part.first + part.shape[0]]

    def _put_units(self, name: str, part: Part, places: Mapping[str, Place]) -> None:
        frozen, first, count = self.banks[name].units.frozen, part.first, part.shape[0]
        assert first is not None
        up, down = (places[f"{name}.{short}"] for short in MATRICES)
        if isinstance(frozen, UnitsOnDisk):
            pool, sizes = frozen.bank.pool, [place.num_bytes // count for place in (up, down)]
            for unit in range(count):
                extents = [
                    Extent(place.file, place.offset + unit * size, size)
                    for place, size in zip((up, down), sizes, strict=True)
                ]
                pool.move(frozen.bank.layer, first + unit, extents)
            return
        assert isinstance(frozen, UnitsInMemory)
        for short, place in zip(MATRICES, (up, down), strict=True):
            whole: Tensor = getattr(frozen.bank, short).detach()
            _read_into(whole[first : first + count], place)


def _begin_slopes(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Below the lowest layer that learns nobody wants slopes, and nothing is kept."""
    x = given[0].detach()
    return (x.requires_grad_() if torch.is_grad_enabled() else x, *given[1:])


def _read_into(out: Tensor, place: Place) -> None:
    if out.dtype is place.dtype and out.is_contiguous():
        read_place(place, out.detach().view(-1))
    else:
        out.detach().copy_(read_tensor(place))


def _plain(path: str) -> str:
    return path.replace(".piece", "")
