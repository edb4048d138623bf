"""State: all that is carried from token to token, as a value.

`y, state = organ(x, state)`: nothing hides in a module. A layer's memory has one verb, `extend`; what a new mixer
carries (slots, membrane potentials, …) only needs that verb's like and `nbytes`. transformers' own caches are borrowed
at the border, where `generate()` hands one in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache

from pragnosia.model.carried import CarriedSlots

KeysValues = tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S K"]]


@runtime_checkable
class Memory(Protocol):
    """What one layer remembers."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""


@dataclass(frozen=True)
class KeyValues:
    """Keys and values of the tokens seen, in an arena with room for more.

    Only entries at and after `length` are ever written, so an older value stays readable while newer ones grow in the
    same arena. Two different continuations of one value must not share it: `fork` first.
    """

    keys: Float[Tensor, "B H M K"]
    values: Float[Tensor, "B H M K"]
    length: int

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int], like: Tensor) -> KeyValues:
        """Nothing seen yet; `shape` is (B, key-value heads, room, K)."""
        return cls(like.new_empty(shape), like.new_empty(shape), 0)

    def extend(self, keys: Float[Tensor, "B H T K"], values: Float[Tensor, "B H T K"]) -> tuple[KeysValues, KeyValues]:
        """All keys and values including the new ones, and the memory that holds them."""
        end = self.length + keys.shape[2]
        grown = self if end <= self.keys.shape[2] else self._roomier(end)
        grown.keys[:, :, self.length : end] = keys
        grown.values[:, :, self.length : end] = values
        return (grown.keys[:, :, :end], grown.values[:, :, :end]), replace(grown, length=end)

    def fork(self) -> KeyValues:
        """A copy that may be continued differently."""
        return KeyValues(self.keys.clone(), self.values.clone(), self.length)

    @property
    def nbytes(self) -> int:
        """Bytes of the arena, used or not."""
        return self.keys.nbytes + self.values.nbytes

    def _roomier(self, needed: int) -> KeyValues:
        """The same memory in an arena at least twice as large, so that growing stays linear in time."""
        batch, heads, room, width = self.keys.shape
        wider = KeyValues.empty((batch, heads, max(needed, 2 * room), width), self.keys)
        wider.keys[:, :, : self.length] = self.keys[:, :, : self.length]
        wider.values[:, :, : self.length] = self.values[:, :, : self.length]
        return replace(wider, length=self.length)


@dataclass(frozen=True)
class Borrowed:
    """One layer of a transformers cache, spoken to in our terms. The cache keeps its own books."""

    cache: Cache
    layer: int
    slots: CarriedSlots | None = None
    """Of all layers, where the model has any."""

    def extend(self, keys: Float[Tensor, "B H T K"], values: Float[Tensor, "B H T K"]) -> tuple[KeysValues, Borrowed]:
        """All keys and values the cache wants seen, and this same view of it."""
        return self.cache.update(keys, values, self.layer), self

    @property
    def nbytes(self) -> int:
        """Left to the cache's owner."""
        return 0


@dataclass(frozen=True)
class State:
    """What the whole model remembers: one memory per layer, and how many tokens it has seen."""

    layers: tuple[Memory | None, ...]
    length: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes held over all layers: what a memory budget governs."""
        return sum(memory.nbytes for memory in self.layers if memory is not None)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, under the name transformers asks for."""
        return self.length

    def fork(self) -> State:
        """A copy that may be continued differently."""
        layers: tuple[Any, ...] = self.layers  # a borrowed memory is not ours to copy
        return replace(self, layers=tuple(one.fork() if hasattr(one, "fork") else one for one in layers))


def borrowed(cache: Cache, num_layers: int, *, slots: bool = False) -> State:
    """A transformers cache as a State; `slots`: with room for them. Raises ConfigError where there can be none."""
    carried = CarriedSlots.beside(cache, num_layers) if slots else None
    # A static cache counts in a tensor, so that a compiled graph need not look at it.
    layers = tuple(Borrowed(cache, layer, carried) for layer in range(num_layers))
    return State(layers, cache.get_seq_length())


def causal_mask(
    length: int, seen: int, window: int | None, padding: Tensor | None, device: torch.device
) -> Tensor | None:
    """Which keys each of `length` new tokens may see: (T, S), with `padding` (B, 1, T, S); None: the plain rules.

    `padding` is (B, S), False for keys that are no tokens, or (B, 1, T, S), False for whatever a query must not see,
    as tokens of another text in its row. The plain rules: one new token sees everything (its window
    is a slice); new tokens on an empty memory see what `is_causal` says.
    """
    total = seen + length
    if padding is None and (length == 1 or (seen == 0 and (window is None or total <= window))):
        return None
    query = torch.arange(seen, total, device=device)[:, None]
    key = torch.arange(total, device=device)
    visible = key <= query
    if window is not None:
        visible = visible & (key > query - window)
    if padding is None:
        return visible
    # A padded query would see nothing, and a softmax over nothing is not a number: it sees itself.
    allowed = padding if padding.dim() == 4 else padding[:, None, None, :]
    return (visible & allowed.bool()) | (key == query)


def as_visibility(mask: Any) -> Tensor | None:
    """A mask of transformers in our terms: its eager attention adds masks (0 is seen), ours says who is seen."""
    visible: Tensor | None = mask if mask is None or mask.dtype == torch.bool else mask == 0
    return visible
