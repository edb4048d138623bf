"""Token gates: a token that matters little passes a layer by.

    s_t = sigmoid(g . norm(x_t));   a token with s_t > c passes:   x_t += 2 s_t (mix_t + think_t)
                                    every other stays:             x_t

Mixture-of-Depths, Raposo et al. 2024, arXiv 2404.02258, eq. 1, where the best k tokens of a text pass. Who is among
those depends on tokens that are yet to come; here c is a running quantile of the scores that a share of all tokens lies
above, as that of the threshold thalamus. So a token's fate hangs on itself alone, in training as in speaking. c moves
in `rebalance`, between steps. The norm is the mixer's, which every token needs: one that passes by is still heard by
later tokens, for its key and its value are remembered. Queries, attention, output and the whole feed-forward are not
computed for it. The factor 2 makes a gate that knows nothing yet (s = 1/2) change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pragnosia.errors import ConfigError
from pragnosia.model.organs import GatesConfig
from pragnosia.model.thalamus import ASLEEP, ENERGY_LEVELS, Routing, at_level, own_precision

if TYPE_CHECKING:
    from pragnosia.model.attention import Moment
    from pragnosia.model.state import Memory

LOUDNESS = 2.0
_SLOWEST = 0.25
"""Of the way to a step's own quantile: one unit is seen by every token, so that a step tells it to a percent."""


@final
class TokenGate(nn.Module):
    """Scores tokens; its routing has one unit, the layer, awake for those that pass."""

    thresholds: Tensor
    """(Q,): the scores that a share (q + 1) / Q of those who usually pass lie above."""
    num_observed: Tensor

    def __init__(self, width: int, organ: GatesConfig) -> None:
        super().__init__()
        self.share = organ.share
        self.weight = nn.Parameter(torch.empty(width))
        self.register_buffer("thresholds", torch.full((ENERGY_LEVELS,), 0.5))
        self.register_buffer("num_observed", torch.zeros(()))

    def forward(self, x: Float[Tensor, "T D"], gates: float) -> Routing:
        """Who passes where a share `gates` in (0, 1] of those does who usually do."""
        with own_precision(x):
            scores = (x.float() @ self.weight.float()).sigmoid()[:, None]
        return routing_of_scores(scores, self.threshold(gates))

    def threshold(self, gates: float) -> Float[Tensor, ""]:
        """c, between the two nearest levels kept."""
        return at_level(self.thresholds, gates)

    @torch.no_grad()
    def rebalance(self, routing: Routing) -> None:
        """Move each level's threshold towards the last step's quantile."""
        passing = self.share * torch.arange(1, ENERGY_LEVELS + 1, device=routing.scores.device) / ENERGY_LEVELS
        quantiles = torch.quantile(routing.scores.detach().float().flatten(), 1 - passing)
        self.num_observed += 1
        self.thresholds.lerp_(quantiles.to(self.thresholds.dtype), max(_SLOWEST, 1 / float(self.num_observed)))


def routing_of_scores(scores: Float[Tensor, "T 1"], threshold: Tensor | float) -> Routing:
    """Those above the threshold pass, by as much as they scored."""
    passes = scores.detach() > threshold
    return Routing(torch.where(passes, 0, ASLEEP), LOUDNESS * scores.where(passes, 0.0), scores)


@dataclass(frozen=True)
class Passing:
    """Which of B x T tokens pass, and how their queries lie side by side: P is the most that one row has."""

    tokens: Int[Tensor, " N"]
    """Their numbers among B T, ascending."""
    places: Int[Tensor, "B P"]
    """In their row; a row with fewer is filled up."""
    slots: Int[Tensor, "B P"]
    """Which of the N stands there."""
    filled: Bool[Tensor, "B P"]
    """False for what fills up."""

    @classmethod
    def of(cls, passes: Bool[Tensor, "B T"]) -> Passing:
        """Where they are."""
        counts = passes.sum(1)
        tokens = passes.flatten().nonzero()[:, 0]
        most = int(counts.max())
        places = passes.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        slots = (passes.flatten().cumsum(0) - 1).view_as(passes).gather(1, places).clamp_min(0)
        return cls(tokens, places, slots, torch.arange(most, device=passes.device) < counts[:, None])

    def of_positions(self, values: Float[Tensor, "Br 1 T K"]) -> Float[Tensor, "1 1 N K"]:
        """What is given for every position, for those that pass; Br is B, or 1 where rows are alike."""
        rows, places = self.tokens.div(values.shape[2], rounding_mode="floor"), self.tokens % values.shape[2]
        return values[rows % values.shape[0], 0, places][None, None]

    def visible(self, mask: Tensor | None, length: int, seen: int) -> Tensor | None:
        """Of (T, S) or (B, 1, T, S), or of plain causality (None), the rows of those that pass: (B, 1, P, S)."""
        if mask is None:
            if length == 1:
                return None
            last = (self.places + (seen - length))[:, None, :, None]
            return torch.arange(seen, device=last.device) <= last
        if mask.dim() == 2:
            return mask[self.places][:, None]
        rows = mask.expand(len(self.places), 1, -1, -1)
        return rows.gather(2, self.places[:, None, :, None].expand(-1, -1, -1, mask.shape[-1]))


def pass_gate(
    layer: Any, x: Float[Tensor, "B T D"], memory: Memory | None, moment: Moment
) -> tuple[Float[Tensor, "B T D"], Memory | None, Routing]:
    """A gated layer: the stream, this layer's memory, who passed, and who of its units woke for them."""
    normed = layer.mixer_norm(x)
    gate: Routing = layer.gate(normed.flatten(0, 1), moment.setting.gates)
    passing = Passing.of((gate.units[:, 0] != ASLEEP).view(x.shape[:2]))
    count, stream = len(passing.tokens), x.flatten(0, 1)
    everyone = count == len(stream)
    mixed, memory = layer.mixer(normed, memory, moment if everyone else replace(moment, passing=passing))
    # Those that pass are one row now: (1, N, D).
    mixed = mixed.flatten(0, 1)[None]
    tokens = (stream if everyone else stream.index_select(0, passing.tokens))[None] + mixed
    thought, routing = layer.feed_forward(layer.feed_forward_norm(tokens), moment)
    update = (mixed + thought)[0] * gate.strengths[passing.tokens].to(mixed.dtype)
    x = stream.index_add(0, passing.tokens, update.to(x.dtype)).view_as(x)
    return x, memory, _of_all(routing, passing.tokens, gate)


def _of_all(routing: Routing | None, tokens: Int[Tensor, " N"], gate: Routing) -> Routing:
    """Who woke, for those that passed and for those that did not."""
    count, empty = len(gate.units), gate.scores.new_empty(len(tokens), 0)
    units, strengths, scores = (empty.long(), empty, empty) if routing is None else routing[:3]
    return Routing(
        units.new_full((count, units.shape[1]), ASLEEP).index_copy(0, tokens, units),
        strengths.new_zeros(count, strengths.shape[1]).index_copy(0, tokens, strengths),
        scores.new_zeros(count, scores.shape[1]).index_copy(0, tokens, scores),
        gate,
        None if routing is None else routing.asked,
    )


def check_gated(layer: int, mixer: object) -> None:
    """Raise ConfigError unless the mixer of a gated layer can leave tokens out."""
    if not getattr(mixer, "lets_pass", False):
        raise ConfigError(
            f"gates.layers names {layer}, whose mixer {type(mixer).__name__} mixes every token; leave the layer out"
        )
