"""The exits' course: which of them learn in a step, and which layers a batch's rows pass by.

    all       every exit at every step                                    weight w / E each, of E exits
    rotate    exit number (step mod E)                                    weight w
    gradual   the deepest 1 + floor(2 E s / S) of them, all from half     weight w over their number
    dropped   p_l = p (2^(l / (L-1)) - 1) (2^(s / (S-1)) - 1)             layer l of L, step s of S

Elhoushi et al. 2024 (LayerSkip), arXiv 2404.16710, section 4.1: layer dropout grows with depth and with time, and one
exit at a time costs less than all. A row passes a layer by with its chance, at least one row passes every layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pragnosia.model.exits import ExitLesson
from pragnosia.model.organs import ExitsConfig


def lesson_at(organ: ExitsConfig | None, step: int, steps: int, num_layers: int, rows: int) -> ExitLesson | None:
    """The lesson of one batch of `rows` rows; None where there are no exits. Draws from torch's generator."""
    if organ is None:
        return None
    return ExitLesson(exit_weights(organ, step, steps), passing(organ, step, steps, num_layers, rows))


def exit_weights(organ: ExitsConfig, step: int, steps: int) -> dict[int, float]:
    """By the layers before an exit: the weight of its loss at this step."""
    layers, count = list(organ.layers), len(organ.layers)
    if organ.curriculum == "rotate":
        return {layers[step % count]: organ.loss_weight}
    if organ.curriculum == "gradual":
        layers = layers[-min(count, 1 + 2 * count * step // max(steps, 1)) :]
    return {layer: organ.loss_weight / len(layers) for layer in layers}


def dropout_rates(organ: ExitsConfig, step: int, steps: int, num_layers: int) -> list[float]:
    """The chance that a row passes each layer by."""
    grown = 2 ** (step / max(steps - 1, 1)) - 1
    return [organ.layer_dropout * grown * (2 ** (layer / max(num_layers - 1, 1)) - 1) for layer in range(num_layers)]


def passing(organ: ExitsConfig, step: int, steps: int, num_layers: int, rows: int) -> tuple[Tensor | None, ...] | None:
    """For each layer the rows that pass it, None where all do; None where nothing is dropped."""
    if not organ.layer_dropout:
        return None
    kept: list[Tensor | None] = []
    for rate in dropout_rates(organ, step, steps, num_layers):
        chances = torch.rand(rows)
        passed = chances >= rate
        if not passed.any():
            passed[int(chances.argmax())] = True
        kept.append(None if passed.all() else passed.nonzero()[:, 0])
    return tuple(kept)
