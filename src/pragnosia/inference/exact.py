"""Exact mode: transformers' own model, resident but for its experts, which lie on disk and come when they wake.

The modules are transformers' eager ones, so that the logits are theirs bit for bit. An experts module asks for one
unit after the other, `gate_up_proj[e]` and then `down_proj[e]`; what answers here is no tensor of all units but a
`Part`, which gives a view of the unit's record in the pool, as it lies in the file: nothing is converted.
A prompt is read as a whole, as transformers reads it: in pieces the last bits might differ.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig

from pragnosia.errors import CheckpointError, PromptError
from pragnosia.kernels.pool import UnitPool
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.setting import WHOLE, Setting
from pragnosia.model.thalamus import Routing


@dataclass
class Reader:
    """Units one by one, in the order in which a module asks for them; and who woke in this pass."""

    pool: UnitPool
    routings: dict[int, Routing] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._turns: Iterator[tuple[int, Tensor]] = iter(())
        self._here: tuple[int, Tensor] | None = None

    def record(self, unit: int) -> Tensor:
        """A unit's bytes, which stay until the next one is asked for. Raises CheckpointError."""
        if self._here is None or self._here[0] != unit:
            try:
                self._here = next(self._turns)
            except OSError as error:
                raise CheckpointError(f"{error}") from error
        assert self._here[0] == unit, "transformers visits units in ascending order"
        return self._here[1]

    def reading(self, layer: int, units: list[int], work: Callable[[], Tensor]) -> Tensor:
        """What comes of `work`, which asks for these units of a layer in this order."""
        turns = self.pool.turns(layer, units)
        self._turns = turns
        try:
            return work()
        finally:
            self._turns, self._here = iter(()), None
            turns.close()


@dataclass(frozen=True)
class Part:
    """Stands where a parameter (U, …) of an experts module stood: `part[unit]` is the unit's matrix."""

    reader: Reader
    offset: int
    """Bytes before it in a record."""
    shape: torch.Size
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Of one unit's matrix."""
        return self.shape.numel() * self.dtype.itemsize

    def __getitem__(self, unit: Any) -> Tensor:
        record = self.reader.record(int(unit))
        return record[self.offset : self.offset + self.num_bytes].view(self.dtype).view(self.shape)


@final
class ExactExperts(nn.Module):
    """An experts module of transformers, whose units are on their way while it computes."""

    def __init__(self, theirs: nn.Module, reader: Reader, layer: tuple[int, int]) -> None:
        super().__init__()
        self.theirs, self.reader = theirs, reader
        self.layer, self.number = layer
        """Of all layers, and of the sparse ones."""
        offset = 0
        for name in ("gate_up_proj", "down_proj"):
            parameter = theirs._parameters.pop(name)
            assert parameter is not None
            part = Part(reader, offset, parameter.shape[1:], parameter.dtype)
            setattr(theirs, name, part)
            offset += part.num_bytes

    def forward(self, hidden: Tensor, units: Tensor, strengths: Tensor) -> Tensor:
        """As theirs. Raises CheckpointError where a unit cannot be read."""
        self.reader.routings[self.layer] = Routing(units, strengths, strengths.new_empty(len(units), 0))
        return self.reader.reading(self.number, units.unique().tolist(), partial(self.theirs, hidden, units, strengths))


@dataclass(frozen=True)
class ExactState:
    """Keys and values as transformers keeps them, and how many tokens they are of. Never changed: a pass makes anew."""

    cache: DynamicCache
    length: int = 0

    @property
    def layers(self) -> list[Any]:
        """What each layer remembers."""
        return self.cache.layers

    def opened(self) -> DynamicCache:
        """A cache to write into; its layers hold these tensors until they put longer ones in their place."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return cache


class Exact(NamedTuple):
    """What a pass gives; of logits and hidden states only the one that was asked for."""

    routings: tuple[Routing | None, ...]
    logits: Tensor | None = None
    past_key_values: ExactState | None = None
    last_hidden_state: Tensor | None = None


@final
class ExactModel(nn.Module):
    """transformers' model where the decoder and the measures expect ours. Every unit that its router chose wakes."""

    prompt_piece = 1 << 60
    """Tokens of a prompt that are read at once: all."""

    def __init__(self, config: PragnosiaConfig, theirs: Any, reader: Reader | None) -> None:
        super().__init__()
        self.config, self.theirs, self.reader = config, theirs, reader
        self.unit_pool = None if reader is None else reader.pool
        self.generation_config: GenerationConfig = theirs.generation_config
        self.device, self.dtype = torch.device("cpu"), theirs.dtype

    @property
    def layers(self) -> nn.ModuleList:
        """Theirs, from the first to the last."""
        layers: nn.ModuleList = self.theirs.model.layers
        return layers

    @property
    def lm_head(self) -> nn.Module:
        """The output head."""
        head: nn.Module = self.theirs.lm_head
        return head

    def fresh_state(self, batch: int = 1, room: int = 0) -> ExactState:
        """Nothing read yet; it grows as it must, whatever the room."""
        return ExactState(DynamicCache(config=self.theirs.config))

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        past_key_values: ExactState | None = None,
        *,
        logits_to_keep: int = 0,
        setting: Setting = WHOLE,
    ) -> Exact:
        """Logits and the state after these tokens. Raises CheckpointError, PromptError."""
        state = self.fresh_state() if past_key_values is None else past_key_values
        cache = state.opened()
        output = self._passed(
            setting, self.theirs, tokens, past_key_values=cache, use_cache=True, logits_to_keep=logits_to_keep
        )
        after = ExactState(cache, state.length + tokens.shape[1])
        return Exact(self._woken(), logits=output.logits, past_key_values=after)

    def model(self, tokens: Int[Tensor, "B T"], *, use_cache: bool = False, setting: Setting = WHOLE) -> Exact:
        """The hidden states before the output head."""
        output = self._passed(setting, self.theirs.model, tokens, use_cache=use_cache)
        return Exact(self._woken(), last_hidden_state=output.last_hidden_state)

    def _passed(self, setting: Setting, module: nn.Module, tokens: Tensor, **options: Any) -> Any:
        if setting != WHOLE:
            raise PromptError(
                f"the setting is {setting}; exact mode computes as transformers does, at energy 1: leave one of them "
                "out"
            )
        if self.reader is not None:
            self.reader.routings.clear()
            self.reader.pool.tick()
        with torch.inference_mode():
            return module(tokens, **options)

    def _woken(self) -> tuple[Routing | None, ...]:
        routings: dict[int, Routing] = {} if self.reader is None else self.reader.routings
        return tuple(routings.get(layer) for layer in range(self.config.num_hidden_layers))
