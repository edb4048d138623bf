"""A layer that remembers more than its mixer does: working memory beside the mixer, a workspace behind them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.model.attention import Moment
from pragnosia.model.carried import Parts
from pragnosia.model.competition import Slots
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.state import Borrowed, Memory
from pragnosia.model.thalamus import Routing
from pragnosia.model.working_memory import WorkingMemory
from pragnosia.model.workspace import Workspace


@dataclass(frozen=True)
class LayerMemory:
    """What such a layer remembers: its mixer's memory, and slots. None is what there is not."""

    mixer: Memory | None
    working: Slots | None
    workspace: Slots | None

    def fork(self) -> LayerMemory:
        """A copy that may be continued differently."""
        parts: list[Any] = [None if part is None else part.fork() for part in self._parts]
        return LayerMemory(*parts)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for part in self._parts if part is not None)

    @property
    def _parts(self) -> tuple[Any, ...]:
        return self.mixer, self.working, self.workspace


def slot_organs(config: PragnosiaConfig, layer: int) -> tuple[WorkingMemory | None, Workspace | None]:
    """Those that a layer has. Raises ConfigError for one with a gate."""
    organs = config.working_memory, config.workspace
    has_memory, has_workspace = (organ is not None and layer in organ.layers for organ in organs)
    if (has_memory or has_workspace) and config.gates is not None and layer in config.gates.layers:
        name = "working_memory" if has_memory else "workspace"
        raise ConfigError(
            f"gates.layers and {name}.layers both name {layer}: a token that passes a layer by would leave nothing "
            "there; take it out of one of them"
        )
    return WorkingMemory(config) if has_memory else None, Workspace(config, layer) if has_workspace else None


def pass_slots(
    layer: Any, x: Float[Tensor, "B T D"], memory: Memory | None, moment: Moment
) -> tuple[Float[Tensor, "B T D"], Memory | None, Routing | None]:
    """Such a layer: the stream, what it remembers, and who woke."""
    given = memory if isinstance(memory, LayerMemory) else LayerMemory(memory, *_beside(memory))
    working, workspace = given.working, given.workspace
    mixed, tokens = layer.mixer(layer.mixer_norm(x), given.mixer, moment)
    said = [mixed]
    if layer.working_memory is not None:
        recalled, working = layer.working_memory(x, working, moment)
        x = x + recalled
        said.append(recalled)
    x = x + mixed
    thought, routing = layer.feed_forward(layer.feed_forward_norm(x), moment)
    said.insert(1, thought)
    x = x + thought
    if layer.workspace is not None:
        heard, workspace = layer.workspace(x, said, workspace, moment)
        x = x + heard
    if isinstance(memory, Borrowed):
        assert memory.slots is not None
        memory.slots.parts[memory.layer] = working, workspace
        return x, memory, routing
    return x, None if memory is None else LayerMemory(tokens, working, workspace), routing


def _beside(memory: Memory | None) -> Parts:
    """Slots that a cache of transformers carries."""
    if not isinstance(memory, Borrowed) or memory.slots is None:
        return None, None
    return memory.slots.parts.get(memory.layer, (None, None))


def fresh_memory(layer: Any, batch: int, room: int, like: Tensor) -> Memory:
    """An empty memory of any layer, of `like`'s dtype and device."""
    memory: Memory = layer.mixer.fresh_memory(batch, room, like)
    if layer.working_memory is None and layer.workspace is None:
        return memory
    organs = (layer.working_memory, layer.workspace)
    return LayerMemory(memory, *(None if organ is None else organ.slots.fresh_slots(batch, like) for organ in organs))
