"""Blocks: the weights of a model cut into pieces that learn in turn, each as a whole, while all others stand still.

    layer-03          mixer, norms, router, and whatever of its feed-forward is always awake
    layer-03.units-16 a run of units of its bank, with their biases

An optimiser needs 16 bytes for each weight it moves: fp32 weight, slope and two moments. Only one block is moved at a
time, so only that block's are in memory. Embeddings and the output head stay as they are. BAdam: Luo et al. 2024,
arXiv 2404.02827, algorithm 1.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pragnosia.checkpoints.source import Shape
from pragnosia.errors import ConfigError
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import PlainCortex

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_BANK = re.compile(r"(.*\.bank)\.(up|down|up_bias|down_bias)")
_MIXING = ("mixer.", "mixer_norm.", "gate.")


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """How blocks take turns."""

    steps: int = 20
    """That a block learns for, before the next one's turn."""
    units: int | None = None
    """Units of a bank in one block; None leaves it to the budget."""
    reset_moments: bool = False
    """Begin every turn with an optimiser that remembers nothing, as the paper does."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"block_steps is {self.steps}; it must be at least 1")
        if self.units is not None and self.units < 1:
            raise ConfigError(f"block_units is {self.units}; it must be at least 1")


@dataclass(frozen=True)
class Cut:
    """Where a model is cut."""

    units: int
    """Of a bank in one block."""
    halves: bool = False
    """A layer's mixer and its feed-forward are blocks of their own."""


@dataclass(frozen=True)
class Part:
    """One tensor of a model, or the rows of some units of it."""

    tensor: str
    shape: Shape
    """Of what is here: (units, …) of a bank's."""
    first: int | None = None
    """Unit; None for a tensor that is here whole."""

    @property
    def bank(self) -> str | None:
        """The bank it is of."""
        match = _BANK.fullmatch(self.tensor)
        return match[1] if match else None


@dataclass(frozen=True)
class Block:
    """What learns together."""

    name: str
    parts: tuple[Part, ...]

    @property
    def parameters(self) -> int:
        """Numbers in it."""
        return sum(math.prod(part.shape) for part in self.parts)

    @property
    def layer(self) -> int:
        """The lowest one it has something of: further down no slope need go."""
        return min(int(match[1]) for part in self.parts if (match := _LAYER.fullmatch(part.tensor)))


def blocks_of(config: PragnosiaConfig, cut: Cut) -> list[Block]:
    """All blocks of a model, from its first layer to its last; the final norm goes with the last layer."""
    groups: dict[str, list[Part]] = {}
    last = int(config.num_hidden_layers) - 1
    for tensor, shape in _trainable(config).items():
        match = _LAYER.fullmatch(tensor)
        bank = _BANK.fullmatch(tensor)
        if match is None and tensor != "model.norm.weight":
            continue
        layer, rest = (int(match[1]), match[2]) if match else (last, "")
        if bank is not None:
            for first in range(0, shape[0], cut.units):
                count = min(cut.units, shape[0] - first)
                name = f"{_layer_name(layer)}.units-{first:03d}"
                groups.setdefault(name, []).append(Part(tensor, (count, *shape[1:]), first))
            continue
        half = f".{'mixer' if rest.startswith(_MIXING) else 'feed-forward'}" if cut.halves else ""
        groups.setdefault(f"{_layer_name(layer)}{half}", []).append(Part(tensor, shape))
    return [Block(name, tuple(groups[name])) for name in sorted(groups)]


def choose_cut(config: PragnosiaConfig, room: int | None, units: int | None) -> Cut:
    """The coarsest cut whose blocks have at most `room` numbers, or the finest there is; `units` of a bank if given.

    Raises ConfigError for more units than a bank has, or for units of a model that has none.
    """
    most = _most_units(config)
    if units is not None and units > most:
        what = f"a bank of this model has {most} units" if most else "this model has no units"
        raise ConfigError(f"block_units is {units}, {what}; give fewer, or leave it to the plan")
    coarse = Cut(units or max(most, 1))
    if room is None:
        return coarse
    whole, halves = (max(_dense_sizes(config, Cut(coarse.units, cut))) for cut in (False, True))
    split = whole > room
    if units is not None or not most:
        return Cut(coarse.units, split)
    # what the largest other block takes is there for units, too
    room = max(room, halves if split else whole)
    groups = -(-most // max(1, min(most, room // _unit_size(config))))
    return Cut(-(-most // groups), split)


def turn(blocks: list[Block], number: int, seed: int) -> Block:
    """Whose turn it is at visit `number`: every round goes through all blocks, each in an order of its own."""
    order = list(range(len(blocks)))
    random.Random(f"blocks {seed} {number // len(blocks)}").shuffle(order)
    return blocks[order[number % len(blocks)]]


def _layer_name(layer: int) -> str:
    return f"layer-{layer:03d}"


def _trainable(config: PragnosiaConfig) -> Mapping[str, Shape]:
    return {name: tuple(weight.shape) for name, weight in PlainCortex.unfilled(config).named_parameters()}


def _most_units(config: PragnosiaConfig) -> int:
    return config.units.num_units if config.units and config.sparse_layers else 0


def _unit_size(config: PragnosiaConfig) -> int:
    """Numbers in the largest unit."""
    sizes: dict[str, int] = {}
    for tensor, shape in _trainable(config).items():
        if bank := _BANK.fullmatch(tensor):
            sizes[bank[1]] = sizes.get(bank[1], 0) + math.prod(shape[1:])
    return max(sizes.values())


def _dense_sizes(config: PragnosiaConfig, cut: Cut) -> list[int]:
    return [block.parameters for block in blocks_of(config, cut) if block.parts[0].first is None]
