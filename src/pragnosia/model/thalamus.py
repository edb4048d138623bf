"""Thalamus: the token-to-unit router. Scores in, a few woken units and their strengths out.

    softmax    s = softmax(W x);    wake the A largest of s + b        Shazeer et al. 2017, arXiv 1701.06538
    sigmoid    s = sigmoid(W x);    wake the A largest of s + b        DeepSeek-V3, arXiv 2412.19437, eq. 12-16
    threshold  s = sigmoid(W x);    wake every unit with s > c         expert threshold, arXiv 2603.11535

The strength of a unit is its s (without b), renormalised over the awake ones if so configured. b is the loss-free
balance, b += rate * sign(mean load - load) (arXiv 2408.15664); c is a running quantile of the unit's own scores. Both
change in `rebalance`, between steps: forward never learns. `awake` in (0, 1] scales how many wake, on the same
weights. `steering` is added to W x, so a lobe can be pushed, or silenced by minus infinity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia import kernels
from pragnosia.model.linear import Linear
from pragnosia.model.organs import ThalamusConfig

ASLEEP = -1
ENERGY_LEVELS = 8
_TINY = 1e-20


class Routing(NamedTuple):
    """Which units wake for each token, how strongly, and every unit's score."""

    units: Int[Tensor, "T A"]
    """ASLEEP (-1) where a slot wakes nobody."""
    strengths: Float[Tensor, "T A"]
    scores: Float[Tensor, "T U"]
    gate: Routing | None = None
    """Who passed, where the layer has a gate (gates.py): its one unit is the layer. For the others nobody woke."""
    asked: Float[Tensor, "N 2 Q"] | None = None
    """Mean and spread of the queries of N batches, where the layer recalls (hippocampus.py) and learns."""

    @property
    def routes(self) -> bool:
        """Whether there are units: behind a gate may stand a dense layer, whose U and A are 0."""
        return self.units.shape[-1] > 0

    @property
    def passed(self) -> Routing:
        """Of the tokens that passed the gate alone."""
        if self.gate is None:
            return self
        here = self.gate.units[:, 0] != ASLEEP
        return Routing(self.units[here], self.strengths[here], self.scores[here], asked=self.asked)

    def each(self, change: Callable[[Tensor], Tensor]) -> Routing:
        """Every tensor changed alike."""
        gate = None if self.gate is None else self.gate.each(change)
        asked = None if self.asked is None else change(self.asked)
        return Routing(change(self.units), change(self.strengths), change(self.scores), gate, asked)


def joined(parts: Sequence[Routing]) -> Routing:
    """The routings of several batches as those of one."""
    gates = [part.gate for part in parts if part.gate is not None]
    units, strengths, scores = (torch.cat(column) for column in zip(*(part[:3] for part in parts), strict=True))
    asked = [part.asked for part in parts if part.asked is not None]
    return Routing(units, strengths, scores, joined(gates) if gates else None, torch.cat(asked) if asked else None)


def nobody(x: Float[Tensor, "T D"], asked: Tensor | None = None) -> Routing:
    """The routing of a layer without units: U and A are 0."""
    none = x.new_empty(len(x), 0, dtype=torch.float32)
    return Routing(none.long(), none, none, asked=asked)


def sparse(routings: Sequence[Routing | None]) -> list[Routing]:
    """Of the layers that have units."""
    return [routing for routing in routings if routing is not None and routing.routes]


class Thalamus(nn.Module, ABC):
    """What all routers share: the scores' weights, steering, and the verbs of balance."""

    steering: Tensor

    def __init__(self, width: int, num_units: int, organ: ThalamusConfig) -> None:
        super().__init__()
        self.organ = organ
        self.gist: nn.Module = Linear(width, organ.rank, bias=False) if organ.rank else nn.Identity()
        """What of x the scores look at, where they are of low rank."""
        self.weight = nn.Parameter(torch.empty(num_units, organ.rank or width))
        self.bias = nn.Parameter(torch.zeros(num_units)) if organ.bias else None
        self.register_buffer("steering", torch.zeros(num_units, dtype=torch.float32), persistent=False)

    @abstractmethod
    def forward(self, x: Float[Tensor, "T D"], awake: float) -> Routing:
        """Choose the units each token wakes."""

    @abstractmethod
    def rebalance(self, routing: Routing) -> None:
        """Move the balance by what woke in the last step. Called between steps, never in forward."""

    @property
    def num_units(self) -> int:
        """U."""
        return self.weight.shape[0]

    def num_awake(self, awake: float) -> int:
        """How many units wake per token at this share of the usual: at least one."""
        return max(1, round(awake * self.organ.num_awake))


def own_precision(x: Tensor) -> AbstractContextManager[None]:
    """Autocast stays out: a rounded score wakes the wrong unit."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class _TopK(Thalamus, ABC):
    """The A best units wake, by score plus balance."""

    squash: ClassVar[str]
    """How logits become scores: a name that `kernels.route` knows."""
    balance: Tensor | None

    def __init__(self, width: int, num_units: int, organ: ThalamusConfig) -> None:
        super().__init__(width, num_units, organ)
        self.register_buffer("balance", torch.zeros(num_units) if organ.balance_rate else None)

    def forward(self, x: Float[Tensor, "T D"], awake: float) -> Routing:
        """The A largest of s + b wake with strength s."""
        organ = self.organ
        with own_precision(x):
            routed = kernels.route(
                *(self.gist(x.to(self.weight.dtype)), self.weight, self.bias, self.steering, self.balance),
                awake=self.num_awake(awake),
                squash=self.squash,
                renormalise=organ.renormalise,
                scale=organ.scale,
            )
        return Routing(*routed)

    @torch.no_grad()
    def rebalance(self, routing: Routing) -> None:
        """b += rate * sign(mean load - load)."""
        if self.balance is not None:
            load = unit_load(routing)
            self.balance += self.organ.balance_rate * torch.sign(load.mean() - load)


class SoftmaxThalamus(_TopK):
    """Units compete for one unit of strength; all score 0 where all are silenced."""

    squash = "softmax"


class SigmoidThalamus(_TopK):
    """Each unit is judged on its own."""

    squash = "sigmoid"


class ThresholdThalamus(Thalamus):
    """The energy gate: each unit wakes when its score passes its own running quantile, so easy tokens wake few.

    `thresholds[q, u]` is the quantile of unit u's scores that a share (q + 1) / Q of the usual load passes, so that
    `awake` scales the load itself, not the threshold. At most `max_awake` wake per token.
    """

    thresholds: Tensor
    num_observed: Tensor

    def __init__(self, width: int, num_units: int, organ: ThalamusConfig) -> None:
        super().__init__(width, num_units, organ)
        self.max_awake = min(num_units, organ.max_awake or 2 * organ.num_awake)
        self.register_buffer("thresholds", torch.full((ENERGY_LEVELS, num_units), 0.5))
        self.register_buffer("num_observed", torch.zeros(()))

    def forward(self, x: Float[Tensor, "T D"], awake: float) -> Routing:
        """Every unit above its threshold wakes with strength s."""
        with own_precision(x):
            logits = F.linear(self.gist(x.to(self.weight.dtype)), self.weight, self.bias).float() + self.steering
        scores = logits.sigmoid()
        margin = scores.detach() - self.threshold(awake)
        # -1 is below every possible margin of a unit that scores 0 because it is silenced.
        lead, units = margin.where(scores > 0, -1.0).topk(self.max_awake, dim=-1)
        passes = lead > 0
        chosen = scores.gather(-1, units).where(passes, 0.0)
        if self.organ.renormalise:
            chosen = chosen / chosen.sum(-1, keepdim=True).clamp_min(_TINY)
        return Routing(units.where(passes, ASLEEP), chosen * self.organ.scale, scores)

    def threshold(self, awake: float) -> Float[Tensor, " U"]:
        """c at this share of the usual load, between the two nearest levels kept."""
        return at_level(self.thresholds, awake)

    @torch.no_grad()
    def rebalance(self, routing: Routing) -> None:
        """Move each level's threshold towards the last step's quantile; fast at first, then slowly."""
        share = self.organ.num_awake / self.num_units
        passing = share * torch.arange(1, ENERGY_LEVELS + 1, device=routing.scores.device) / ENERGY_LEVELS
        quantiles = torch.quantile(routing.scores.detach().float(), 1 - passing, dim=0)
        self.num_observed += 1
        self.thresholds.lerp_(quantiles.to(self.thresholds.dtype), max(0.02, 1 / float(self.num_observed)))


def at_level(thresholds: Float[Tensor, Q * U], share: float) -> Float[Tensor, "*U"]:
    """Between the two nearest of the levels kept: level q is for a share (q + 1) / Q."""
    level = max(share * ENERGY_LEVELS - 1, 0.0)
    low = min(int(level), ENERGY_LEVELS - 2)
    return torch.lerp(thresholds[low], thresholds[low + 1], level - low)


def unit_load(routing: Routing) -> Float[Tensor, " U"]:
    """Tokens that woke each unit."""
    awake = routing.units[routing.units >= 0]
    return torch.bincount(awake, minlength=routing.scores.shape[-1]).float()


class RoutingReport(NamedTuple):
    """How evenly a layer's units were used."""

    load: Float[Tensor, " U"]
    """Share of all wakings, summing to 1."""
    entropy: float
    """Of the load, over its maximum ln U: 1 is perfectly even."""
    num_dead: int
    """Units nobody woke."""
    awake_per_token: float


@torch.no_grad()
def report(routing: Routing) -> RoutingReport:
    """Load, entropy and dead units of one layer in one step."""
    load = unit_load(routing)
    num_units, wakings = load.numel(), float(load.sum())
    share = load / max(wakings, 1.0)
    entropy = float(torch.special.entr(share).sum()) / max(float(torch.tensor(num_units).log()), _TINY)
    return RoutingReport(share, entropy, int((load == 0).sum()), wakings / max(routing.units.shape[0], 1))
