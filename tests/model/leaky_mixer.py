"""An organ from outside the tree, whole in one file: a leaky average of the past. Named "leaky_mixer:LeakyMixer".

h[t] = leak h[t-1] + W x[t]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pragnosia.model.attention import Moment
from pragnosia.model.configuration import PragnosiaConfig


@dataclass(frozen=True)
class Trail:
    """What a leaky mixer remembers."""

    level: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.level.nbytes


class LeakyMixer(nn.Module):
    """Each token hears a fading echo of those before it."""

    def __init__(self, config: PragnosiaConfig, layer: int) -> None:
        super().__init__()
        self.inward = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.leak = 0.5 + 0.1 * layer

    def forward(self, x: Tensor, memory: Trail | None, moment: Moment) -> tuple[Tensor, Trail | None]:
        heard = self.inward(x)
        level = torch.zeros_like(heard[:, 0]) if memory is None else memory.level
        levels = []
        for step in heard.unbind(1):
            level = self.leak * level + step
            levels.append(level)
        return torch.stack(levels, 1), None if memory is None else Trail(level)

    def fresh_memory(self, batch: int, room: int, like: Tensor) -> Trail:
        """Silence."""
        return Trail(like.new_zeros(batch, like.shape[-1]))
