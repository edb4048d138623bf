"""Utilisation: who does the work, layer by layer, in a form that a line of a log can hold.

    load of a unit = tokens that woke it / (tokens that woke any / U)        1 is an even share

Units beyond CELLS are told in groups of neighbours, as means. Of long-term memory the units are rows, and the work of
one is whether the step's tokens recalled it, which its sparse gradient says.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from pragnosia.learning import Lesson
from pragnosia.model.thalamus import unit_load

if TYPE_CHECKING:
    from torch import nn

CELLS = 48
"""At most so many numbers tell of a layer."""
Part = dict[str, Any]


@torch.no_grad()
def utilisation(lessons: Sequence[Lesson], model: nn.Module) -> list[Part]:
    """Of each sparse layer and of the table of memory: units, how many slept through the step, and the loads."""
    loads: dict[int, Tensor] = {}
    for lesson in lessons:
        for layer, routing in enumerate(lesson.routings):
            if routing is not None and routing.routes:
                mine = unit_load(routing)
                loads[layer] = loads[layer] + mine if layer in loads else mine
    parts = [told(f"layer {layer}", load) for layer, load in loads.items()]
    for name, weight in model.named_parameters():
        if name.endswith("hippocampus.rows") and weight.grad is not None and weight.grad.is_sparse:
            recalled = torch.zeros(len(weight), device=weight.device)
            recalled[weight.grad._indices()[0]] = 1.0
            parts.append(told("memory", recalled))
    return parts


def told(name: str, load: Float[Tensor, " U"]) -> Part:
    """One layer's line: `load` in cells of neighbours, relative to an even share."""
    units = load.numel()
    cells = min(units, CELLS)
    edges = [units * cell // cells for cell in range(cells + 1)]
    relative = load * (units / max(float(load.sum()), 1.0))
    means = [float(relative[a:b].mean()) for a, b in pairwise(edges)]
    return {
        "name": name,
        "units": units,
        "asleep": int((load == 0).sum()),
        "busiest": round(float(relative.max()), 2),
        "load": [round(mean, 2) for mean in means],
    }
