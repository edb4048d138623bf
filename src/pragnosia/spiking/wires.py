"""Wires: the synapses of a language model's projections, saved with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pragnosia.spiking.configuration import ProjectionConfig
from pragnosia.spiking.int8 import hold, scale_of
from pragnosia.spiking.neurogen_configuration import NeuroGenConfig
from pragnosia.spiking.synapses import Synapses
from pragnosia.spiking.wiring import drawn


class Wires(nn.Module):
    """The synapses of one projection; who is wired to whom is saved with them."""

    weight: Tensor

    def __init__(self, config: NeuroGenConfig, number: int) -> None:
        super().__init__()
        self.number, brain = number, config.wired
        one = brain.projections[number]
        source, target = (brain.populations[name].size for name in (one.source, one.target))
        self.is_matrix = is_matrix(one)
        count = source * target if one.fan_in == "all" else target * one.fan_in
        same = not (self.is_matrix or config.plastic or one.spread or one.mixed or one.plasticity)
        shape = (source, target) if self.is_matrix else (1 if same else count,)
        hold(self, "weight", shape, int8=config.is_int8 and not same, learns=config.plastic, rows=source)
        if not self.is_matrix:
            self.register_buffer("starts", torch.empty(source + 1, dtype=torch.int32))
            self.register_buffer("slots", torch.empty(count, dtype=torch.int32))

    @torch.no_grad()
    def draw(self, config: NeuroGenConfig) -> None:
        """As the brain's own seed has it."""
        made = drawn(config.wired, self.number)
        if self.is_matrix:
            self.weight.copy_(made.weights.expand(made.count).view_as(self.weight))
            return
        own: Any = self
        own.starts.copy_(made.starts)
        own.slots.copy_(made.slots)
        self.weight.copy_(made.weights if len(self.weight) == len(made.weights) else made.weights.expand(made.count))

    def strengths(self) -> Tensor:
        """(sources, targets), (S,) or (1,): the weights as numbers."""
        if scale_of(self, "weight") is None:
            return self.weight.float()
        return self.synapses().strengths.view_as(self.weight)

    def synapses(self, delay: int = 0) -> Synapses:
        """As the compiled step reads them; a matrix has one delay [steps]. The memory is shared."""
        own: Any = self
        weights, scale = self.weight.detach(), scale_of(self, "weight")
        if not self.is_matrix:
            return Synapses(own.starts, own.slots, weights, scale)
        sources, targets = weights.shape
        device = weights.device
        starts = torch.arange(0, sources * targets + 1, targets, dtype=torch.int32, device=device)
        slots = torch.arange(targets, dtype=torch.int32, device=device) + delay * targets
        return Synapses(starts, slots.repeat(sources), weights.flatten(), scale)


def is_matrix(projection: ProjectionConfig) -> bool:
    """Whether every pair is wired, with one delay."""
    low, high = projection.delays_ms
    return projection.fan_in == "all" and low == high
