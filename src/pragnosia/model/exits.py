"""Exits: layers after which the last norm and the output head may already speak, and one step's lesson for them.

    exit_l(x) = head norm(x_l)          x_l the stream behind l layers

No weights of their own, so an exit costs the head and nothing else, and every model has one behind every layer; good
ones have to be trained. Layer dropout keeps the end from leaning on the last layers. Elhoushi et al. 2024 (LayerSkip),
arXiv 2404.16710, section 4.1. When a lesson is due and how hard it is, training says (training/exits.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia.errors import ConfigError
from pragnosia.model.attention import Moment
from pragnosia.model.output_cortex import next_token_loss
from pragnosia.model.state import Memory
from pragnosia.model.thalamus import Routing


@dataclass(frozen=True)
class ExitLesson:
    """What a step asks of the exits, drawn before it: forward draws nothing."""

    weights: Mapping[int, float] = field(default_factory=dict)
    """Of the cross-entropy of the exit behind so many layers."""
    rows: tuple[Int[Tensor, " R"] | None, ...] | None = None
    """For each layer the rows of the batch that pass it, one at least; None: all. None: all, everywhere."""


def rows_of(lesson: ExitLesson | None, num_layers: int) -> tuple[Tensor | None, ...]:
    """For each layer the rows that pass it; None where all do."""
    return (None,) * num_layers if lesson is None or lesson.rows is None else lesson.rows


def pass_some(
    layer: nn.Module, x: Float[Tensor, "B T D"], rows: Int[Tensor, " R"], memory: Memory | None, moment: Moment
) -> tuple[Float[Tensor, "B T D"], Memory | None, Routing | None]:
    """The given rows pass a layer, the others stay as they are: neither arithmetic nor memory is spent on them."""
    alike = moment.rotation[0].shape[0] == 1 and all(mask is None or mask.dim() == 2 for mask in moment.masks.values())
    if memory is not None or not alike:
        raise ConfigError("rows pass layers by in training on whole rows alone: without a cache and without padding")
    rows = rows.to(x.device)
    passed, _, routing = layer(x[rows], None, moment)
    return x.index_copy(0, rows, passed.to(x.dtype)), None, routing


def exit_loss(
    lesson: ExitLesson,
    streams: tuple[Tensor, ...],
    norm: nn.Module,
    head: Float[Tensor, "V D"],
    labels: Int[Tensor, "B T"],
) -> Float[Tensor, ""]:
    """The exits' weighted cross-entropies [nats], summed; `streams[l]` lies behind l layers."""
    losses = [weight * next_token_loss(norm(streams[layer]), head, labels) for layer, weight in lesson.weights.items()]
    return torch.stack(losses).sum()
