"""Meta-learning: weights from which a text is learned in a few steps. Every row of a batch is a task of its own.

A row is cut into k + 1 pieces of equal length. From the shared weights w the first k are learned one after the other,

    w_0 = w        w_{i+1} = w_i - a g_i        g_i = dL_i(w_i) / dw,   L_i the mean next-token cross-entropy of piece i

and the wish on the shared weights is, mean over rows,

    reptile   1/(k+1) sum_i g_i                            Nichol et al. 2018, arXiv 1803.02999, algorithm 2, over a
    fomaml    g_k                                          Finn et al. 2017, arXiv 1703.03400, section 5.2
    maml      (I - a H_0) ... (I - a H_{k-1}) g_k          the same, eq. 1; H_i the Hessian of L_i at w_i

Kernels give slopes and no slopes of slopes, so H v is a central difference of slopes (as in Liu et al. 2019, arXiv
1806.09055, eq. 8), two passes for each of the k steps. The lesson's loss is the mean over pieces, each as it was met.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from pragnosia.errors import ConfigError
from pragnosia.learning.backprop import Backprop, Routings, detached, together
from pragnosia.learning.rule import Lesson, Named
from pragnosia.model.exits import ExitLesson

_STEP = 1e-2
"""Length of a finite difference in weight space."""
Weights = dict[str, Tensor]
Slopes = dict[str, Tensor]
"""By name; what has none is left out."""


@dataclass(frozen=True)
class Met:
    """One piece as it was met."""

    weights: Weights
    slopes: Slopes
    loss: Float[Tensor, ""]
    routings: Routings
    piece: Int[Tensor, "1 L+1"]


class MetaRule(ABC):
    """What the three share: tasks out of rows, inner steps, and where wishes go."""

    def __init__(self, *, autocast: torch.dtype | None = None, inner_steps: int = 3, inner_rate: float = 0.1) -> None:
        steps: Any = inner_steps
        rate: Any = inner_rate
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ConfigError(f"learning.inner_steps is {steps!r}; it must be a whole number, 1 or more")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
            raise ConfigError(f"learning.inner_rate is {rate!r}; it must be a number above 0")
        self.inner_steps, self.inner_rate = inner_steps, float(inner_rate)
        self.plain = Backprop(autocast=autocast)

    @final
    def changes(self, model: nn.Module) -> Iterable[Named]:
        """Every parameter that asks for a gradient. Raises ConfigError for a model with exits, which have no task."""
        if getattr(getattr(model, "config", None), "exits", None) is not None:
            raise ConfigError("exits are not trained by meta-learning; leave model.exits out, or use rule: backprop")
        return self.plain.changes(model)

    @final
    def learn(
        self, model: nn.Module, tokens: Int[Tensor, "B T"], share: float, exits: ExitLesson | None = None
    ) -> Lesson:
        """Adapt to every row from the same weights, and add what that asks of them."""
        learners = dict(self.changes(model))
        losses, routings = [], []
        for row in tokens.split(1):
            met = self._adapt(model, {name: weight.detach() for name, weight in learners.items()}, self._pieces(row))
            for name, slope in self._wish(model, met).items():
                wish = slope * (share / len(tokens))
                held = learners[name].grad
                learners[name].grad = wish if held is None else held + wish
            losses += [one.loss for one in met]
            routings += [one.routings for one in met]
        return Lesson(torch.stack(losses).mean(), together(routings))

    @final
    def settle(self, model: nn.Module, lessons: Sequence[Lesson]) -> None:
        """As back-propagation."""
        self.plain.settle(model, lessons)

    @abstractmethod
    def _wish(self, model: nn.Module, met: Sequence[Met]) -> Slopes:
        """What one task asks of the shared weights."""

    @final
    def _pieces(self, row: Int[Tensor, "1 T"]) -> list[Int[Tensor, "1 L+1"]]:
        count, length = self.inner_steps + 1, row.shape[1] - 1
        size = length // count
        if size < 1:
            raise ConfigError(
                f"rows of {length} tokens cannot be cut into {count} pieces; lower learning.inner_steps or raise "
                "batch.sequence_length"
            )
        return [row[:, at * size : (at + 1) * size + 1] for at in range(count)]

    @final
    def _adapt(self, model: nn.Module, weights: Weights, pieces: Sequence[Tensor]) -> list[Met]:
        """Every piece at its turn: its slopes where the ones before have led."""
        met = []
        for number, piece in enumerate(pieces):
            met.append(self._slopes(model, weights, piece))
            if number + 1 < len(pieces):
                weights = moved(weights, met[-1].slopes, -self.inner_rate)
        return met

    @final
    def _slopes(self, model: nn.Module, weights: Weights, piece: Tensor) -> Met:
        asked = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        given: dict[str, Any] = {"input_ids": piece, "labels": piece, "use_cache": False}
        with torch.enable_grad(), self.plain.precision(piece.device):
            output = functional_call(model, asked, (), given)
        found: Any = torch.autograd.grad(output.loss, list(asked.values()), allow_unused=True)
        slopes = {name: slope for name, slope in zip(asked, found, strict=True) if slope is not None}
        return Met(weights, slopes, output.loss.detach(), detached(output.routings or ()), piece)


@final
class Reptile(MetaRule):
    """Towards where learning the task leads."""

    def _wish(self, model: nn.Module, met: Sequence[Met]) -> Slopes:
        total: Slopes = {}
        for one in met:
            for name, slope in one.slopes.items():
                total[name] = total[name] + slope if name in total else slope
        return {name: slope / len(met) for name, slope in total.items()}


@final
class FirstOrder(MetaRule):
    """The exam's slopes, as if where it is taken did not depend on where learning began."""

    def _wish(self, model: nn.Module, met: Sequence[Met]) -> Slopes:
        return dict(met[-1].slopes)


@final
class SecondOrder(MetaRule):
    """The exam's slopes in the shared weights, through every step that led there. Raises ConfigError in bf16."""

    def __init__(self, *, autocast: torch.dtype | None = None, inner_steps: int = 3, inner_rate: float = 0.1) -> None:
        super().__init__(autocast=autocast, inner_steps=inner_steps, inner_rate=inner_rate)
        if autocast is not None:
            raise ConfigError("maml takes differences of slopes, which bf16 is too coarse for; use precision: fp32")

    def _wish(self, model: nn.Module, met: Sequence[Met]) -> Slopes:
        wish = dict(met[-1].slopes)
        for step in reversed(met[:-1]):
            length = torch.stack([slope.float().square().sum() for slope in wish.values()]).sum().sqrt()
            if float(length) == 0:
                break
            reach = _STEP / float(length)
            ahead, behind = (
                self._slopes(model, moved(step.weights, wish, side * reach), step.piece).slopes for side in (1, -1)
            )
            bent = {name: (slope - behind[name]) / (2 * reach) for name, slope in ahead.items()}
            wish = moved(wish, bent, -self.inner_rate)
        return wish


def moved(weights: Weights, slopes: Slopes, rate: float) -> Weights:
    """w + rate * slope, where there is one."""
    return {name: weight + rate * slopes[name] if name in slopes else weight for name, weight in weights.items()}
