"""Direct feedback alignment: every layer hears the error of the output itself, through weights that never change.

    e[t]    = softmax(W x_L[t]) - onehot(token t+1)                        the output's error
    grad of what layer l leaves = e B                                      in place of e W times all later layers

B (V, D) is random, and one for all layers: on a residual stream what they leave adds up to one sum, and a readout that
comes to agree with B agrees with it for each. It must be free to do so: with tied embeddings little is learned. The
readout and the last norm learn their exact gradient; within a layer it is exact from e B on. Nøkland 2016, arXiv
1609.01596, eq. 2; on whole blocks of a transformer: Launay et al. 2020, arXiv 2006.12878.

Memory beyond weights: B, one number for each of the head's, and as many activations as back-propagation keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia.learning.backprop import Backprop
from pragnosia.learning.cortex import asleep, cortex_of, learners, precision, walk
from pragnosia.learning.rule import Lesson, Named
from pragnosia.model.exits import ExitLesson

SEED = 0


@final
class FeedbackAlignment:
    """Layers that learn from the output's error at once."""

    def __init__(self, *, autocast: torch.dtype | None = None) -> None:
        self.autocast = autocast
        self.feedback: Float[Tensor, "V D"] | None = None
        """Drawn by a fixed seed when first needed, so that a resumed run goes on with the same."""

    def changes(self, model: nn.Module) -> Iterable[Named]:
        """Every parameter that asks for a gradient."""
        return learners(model)

    def learn(
        self, model: nn.Module, tokens: Int[Tensor, "B T"], share: float, exits: ExitLesson | None = None
    ) -> Lesson:
        """One forward pass, then all layers backward, in any order."""
        cortex = cortex_of(model, "dfa", exits)
        with precision(self.autocast, tokens.device):
            passed = list(walk(cortex, tokens))
            logits = cortex.lm_head(cortex.model.norm(passed[-1].left.detach()))[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        (error,) = torch.autograd.grad(loss * share, logits, retain_graph=True)
        (loss * share).backward()
        wish = torch.zeros_like(passed[-1].left, dtype=torch.float32)
        wish[:, :-1] = error @ self._feedback(cortex.lm_head.weight)
        for layer in passed:
            layer.left.backward(wish.to(layer.left.dtype))
        return Lesson(loss.detach(), tuple(asleep(layer.routing) for layer in passed))

    def settle(self, model: nn.Module, lessons: Sequence[Lesson]) -> None:
        """As back-propagation does: the routers are told who woke."""
        Backprop().settle(model, lessons)

    def _feedback(self, head: Float[Tensor, "V D"]) -> Float[Tensor, "V D"]:
        if self.feedback is None or self.feedback.shape != head.shape:
            chance = torch.Generator().manual_seed(SEED)
            self.feedback = torch.randn(head.shape, generator=chance) / math.sqrt(head.shape[1])
        self.feedback = self.feedback.to(head.device)
        return self.feedback


def angle(one: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    """Degrees between two sets of wishes, each taken as one long vector; below 90 they agree more than they differ."""
    a, b = (torch.cat([tensor.flatten().float() for tensor in tensors]) for tensors in (one, other))
    cosine = float(a @ b / (a.norm() * b.norm()).clamp_min(1e-30))
    return math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))
