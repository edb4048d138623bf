"""Local losses: every layer learns to predict the next token by itself, and no layer hears of another's error.

    L_l = mean_t( -log softmax(W norm(x_l[t])) [token t+1] )        x_l = layer_l(stop(x_{l-1}))

W and the norm are the model's own, and learn from the last layer alone. Nøkland and Eidnes 2019, arXiv 1901.06656,
with the prediction loss; greedy modules: Belilovsky et al. 2019, arXiv 1812.11446. Within a layer it is exact.

Memory beyond weights: the activations of one layer, whatever the depth; backprop keeps those of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pragnosia.learning.backprop import Backprop
from pragnosia.learning.cortex import asleep, cortex_of, learners, precision, still, walk
from pragnosia.learning.rule import Lesson, Named
from pragnosia.model.exits import ExitLesson
from pragnosia.model.output_cortex import next_token_loss


@final
class LocalLoss:
    """Layers that learn alone."""

    def __init__(self, *, autocast: torch.dtype | None = None) -> None:
        self.autocast = autocast

    def changes(self, model: nn.Module) -> Iterable[Named]:
        """Every parameter that asks for a gradient."""
        return learners(model)

    def learn(
        self, model: nn.Module, tokens: Int[Tensor, "B T"], share: float, exits: ExitLesson | None = None
    ) -> Lesson:
        """One forward pass; each layer's backward pass follows at once, and its graph is gone before the next."""
        cortex, routings, told = cortex_of(model, "local", exits), [], tokens.new_zeros((), dtype=torch.float32)
        head, norm, depth = cortex.lm_head.weight, cortex.model.norm, len(cortex.model.layers)
        with precision(self.autocast, tokens.device):
            for number, passed in enumerate(walk(cortex, tokens), 1):
                if number == depth:
                    loss = next_token_loss(norm(passed.left), head, tokens)
                else:
                    loss = next_token_loss(still(norm, passed.left), head.detach(), tokens)
                (loss * share).backward()
                routings.append(asleep(passed.routing))
                told = loss.detach()
        return Lesson(told, tuple(routings))

    def settle(self, model: nn.Module, lessons: Sequence[Lesson]) -> None:
        """As back-propagation does: the routers are told who woke."""
        Backprop().settle(model, lessons)
