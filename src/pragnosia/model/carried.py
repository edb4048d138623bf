"""Slots beside a cache of transformers: one more layer of it, so that beams and batches take them along.

transformers' generate() makes the cache and turns, repeats and empties it as its search wants; every layer of the cache
hears of that. What it cannot be is shorter: what stood in slots before is gone, and a cache that is to be cut is
refused. So is one of fixed size, whose masks do not say which tokens are padding.
"""

from __future__ import annotations

from typing import Any, NoReturn, final

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from pragnosia.errors import ConfigError
from pragnosia.model.competition import Slots

Parts = tuple[Slots | None, Slots | None]
"""A layer's working memory and its workspace."""


@final
class CarriedSlots(CacheLayerMixin):
    """The slots of all layers of a model."""

    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts: dict[int, Parts] = {}

    @classmethod
    def beside(cls, cache: Cache, num_layers: int) -> CarriedSlots:
        """Those of a cache, which gets some where it has none. Raises ConfigError for a cache of fixed size."""
        if cache.is_compileable:
            raise ConfigError(
                "a cache of fixed size has no room for working memory or a workspace; leave cache_implementation out"
            )
        while cache.layer_class_to_replicate is not None and len(cache.layers) < num_layers:
            cache.layers.append(cache.layer_class_to_replicate())  # before ours, which is found by no number
        found = next((layer for layer in cache.layers if isinstance(layer, cls)), None)
        if found is None:
            found = cls()
            cache.layers.append(found)
        return found

    def each(self, change: Any) -> None:
        """Every tensor as `change` has it."""
        for layer, parts in self.parts.items():
            changed: Any = tuple(None if part is None else part.each(change) for part in parts)
            self.parts[layer] = changed

    def reset(self) -> None:
        """Nothing was read."""
        self.parts.clear()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search goes on with these rows."""
        self.each(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        self.each(lambda tensor: tensor.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """These rows alone."""
        self.each(lambda tensor: tensor[indices.to(tensor.device)])

    def crop(self, tokens_to_remove: int) -> None:
        """Raises ConfigError where there is something to take back."""
        if tokens_to_remove:
            raise ConfigError(
                "a model with working memory or a workspace cannot take tokens back; generate without an assistant"
            )

    def get_seq_length(self) -> int:
        """Slots count no tokens."""
        return 0

    def get_max_length(self) -> int:
        """They end nowhere."""
        return -1

    def offload(self) -> None:
        """They are small, and stay."""

    def prefetch(self) -> None:
        """They are here."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> NoReturn:
        """No layer's keys come here."""
        raise AssertionError("slots hold no keys and values of attention")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        """No layer's keys come here."""
        raise AssertionError("slots hold no keys and values of attention")

    def get_mask_sizes(self, query_length: int | torch.Tensor) -> NoReturn:
        """No mask is made for slots."""
        raise AssertionError("slots are read without a mask")
