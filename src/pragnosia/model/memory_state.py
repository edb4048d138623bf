"""What a model's memories hold of a text when it has been read: counts, nothing that was learned.

slots     of working memory, and how many of them something stands in behind the last token
rows      of long-term memory, and how many different ones the text recalled
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from pragnosia.errors import PromptError
from pragnosia.model.competition import EMPTY
from pragnosia.model.remembering import LayerMemory

if TYPE_CHECKING:
    from pragnosia.model.cortex import Cortex


@dataclass(frozen=True)
class MemoryState:
    """Of all layers together; 0 of 0 where a model has no such memory."""

    slots: int
    slots_filled: int
    rows: int
    rows_recalled: int
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@torch.no_grad()
def memory_state(model: Cortex, ids: Sequence[int] | Int[Tensor, " T"]) -> MemoryState:
    """Of a text read by itself. Raises PromptError for none."""
    tokens = torch.as_tensor(ids, dtype=torch.long, device=model.device).view(1, -1)
    if tokens.shape[1] == 0:
        raise PromptError("there is no token to read; give some text")
    table, recalled = model.model.hippocampus, list[Tensor]()
    hook = None
    if table is not None:
        hook = table.register_forward_pre_hook(lambda _, given: recalled.append(given[0].unique()))
    try:
        state = model.model(tokens, past_key_values=model.fresh_state(1, tokens.shape[1])).past_key_values
    finally:
        if hook is not None:
            hook.remove()
    slots = [layer.working for layer in state.layers if isinstance(layer, LayerMemory) and layer.working is not None]
    return MemoryState(
        slots=sum(one.strengths.numel() for one in slots),
        slots_filled=sum(int((one.strengths > EMPTY / 2).sum()) for one in slots),
        rows=0 if table is None else len(table.rows),
        rows_recalled=len(torch.cat(recalled).unique()) if recalled else 0,
        tokens=tokens.shape[1],
    )
