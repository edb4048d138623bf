"""Competition for slots: what is offered and what already stands compete for M places, at the end of each segment.

    s_i <- s_i + fading n_i                        strength of an entry that was offered in segment n_i
    slots of segment n = the M largest s_i of all segments before n
    weight of slot i for a query q of segment n ~ exp(q . k_i / sqrt(K)) sigmoid(s_i - fading n); of nothing ~ exp(sink)

The M strongest of a union are the strongest among the strongest of its parts, so one pass over the segments finds all
slots, by their strengths alone, and everything else is computed for all segments at once. Every entry fades alike, so
fading changes no order but that of old against new. Slopes reach a strength through the weight of what was read.

Slots that inputs compete for: Goyal et al. 2021, arXiv 2103.01197; attention over a bounded memory: Peng et al. 2021,
arXiv 2110.02488. There slots are mixtures; here each holds one entry as it was, which recall of names asks for.

R rows, G segments, P entries offered in one (tokens times writers), M slots, H heads of width K, E = 2 H K.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pragnosia.model.segments import Segments

EMPTY = -1e30
"""Strength of a slot that holds nothing: finite, so that slopes stay numbers."""


@dataclass(frozen=True)
class Slots:
    """What stands, and what was offered in a segment that has not ended. Nothing here is ever written in place."""

    contents: Float[Tensor, "B M E"]
    """Keys and values."""
    strengths: Float[Tensor, "B M"]
    """Comparable over segments: `fading` times the segment's number is part of them."""
    pending: Float[Tensor, "B P E"]
    pending_strengths: Float[Tensor, "B P"]

    @classmethod
    def empty(cls, batch: int, num_slots: int, offered: int, width: int, like: Tensor) -> Slots:
        """Nothing stands and nothing was offered."""
        contents, pending = like.new_zeros(batch, num_slots, width), like.new_zeros(batch, offered, width)
        strengths = torch.full((batch, num_slots + offered), EMPTY, dtype=torch.float32, device=like.device)
        return cls(contents, strengths[:, :num_slots].clone(), pending, strengths[:, num_slots:].clone())

    def fork(self) -> Slots:
        """A copy that may be continued differently."""
        return self.each(torch.Tensor.clone)

    def each(self, change: Callable[[Tensor], Tensor]) -> Slots:
        """Every tensor as `change` has it."""
        parts = (self.contents, self.strengths, self.pending, self.pending_strengths)
        return Slots(*(change(part) for part in parts))

    @property
    def nbytes(self) -> int:
        """Bytes held: the same however long the text is."""
        parts = (self.contents, self.strengths, self.pending, self.pending_strengths)
        return sum(part.nbytes for part in parts)


@dataclass(frozen=True)
class Standing:
    """The slots that each segment of a call reads, and the entries they were chosen from."""

    contents: Float[Tensor, "R G M E"]
    strengths: Float[Tensor, "R G M"]
    """As they were offered, less what faded since; EMPTY where there is nothing."""
    entries: Int[Tensor, "R C M"]
    """Which entry stands, before the first segment and behind each that ended: first the slots that stood, then what
    was offered (what was pending first), in order."""
    offered: Float[Tensor, "R GP"]
    """Strength of everything offered, without fading."""


def compete(
    slots: Slots | None,
    offered: Float[Tensor, "B T N E"],
    strengths: Float[Tensor, "B T N"],
    segments: Segments,
    num_slots: int,
    fading: float,
) -> tuple[Standing, Slots]:
    """What each segment finds, and what is remembered behind them all. `strengths` are in float32."""
    each = strengths.shape[2]
    old, waiting = None, None
    if slots is not None:
        old = slots.pending.unflatten(1, (segments.size, each))
        waiting = slots.pending_strengths.unflatten(1, (segments.size, each))[..., None]
    numbers = segments.numbers(offered.device)  # (R or 1, G)
    contents = segments.frame(old, offered)  # (R, G, P, E)
    # What is pending was offered in the running segment, so its part of fading is there already.
    aged = segments.frame(waiting, _aged(strengths, segments, fading)[..., None], EMPTY)[..., 0]  # (R, G, P)
    if slots is None:
        slots = Slots.empty(len(contents), num_slots, contents.shape[2], contents.shape[3], contents)
    standing = _winners(slots.strengths, aged, segments)  # (R, C, M)
    pool = torch.cat((slots.contents.to(contents.dtype), contents.flatten(1, 2)), 1)
    strength = torch.cat((slots.strengths, aged.flatten(1, 2)), 1)
    kept = strength.gather(1, standing.flatten(1)).unflatten(1, standing.shape[1:])
    held = _taken(pool, standing)
    faded = kept[:, : segments.groups] - fading * numbers[..., None]
    after = Slots(held[:, -1], kept[:, -1], segments.rest(contents), segments.rest(aged[..., None], EMPTY)[..., 0])
    bare = aged - fading * numbers[..., None]
    return Standing(held[:, : segments.groups], faded, standing, bare.flatten(1)), after


def _aged(strengths: Float[Tensor, "B T N"], segments: Segments, fading: float) -> Float[Tensor, "B T N"]:
    """With their segment's share of fading."""
    numbers = segments.numbers(strengths.device).to(strengths.dtype)
    each = numbers[..., None, None].expand(-1, -1, segments.size, 1)  # (R or 1, G, S, 1)
    if segments.alike:
        mine = each.flatten(1, 2)[:, segments.filled : segments.filled + segments.length]
    else:
        mine = segments.gather(each)
    return strengths + fading * mine


@torch.no_grad()
def _winners(standing: Tensor, offered: Float[Tensor, "R G P"], segments: Segments) -> Int[Tensor, "R C M"]:
    """Who stands before the first segment and behind each one that ends, as numbers among standing and offered."""
    rows, num_slots = standing.shape
    each = offered.shape[2]
    best = standing
    who = torch.arange(num_slots, device=standing.device).expand(rows, -1)
    history = [who]
    for group in range(segments.num_complete):
        rivals = torch.arange(each, device=who.device) + (num_slots + group * each)
        strongest = torch.cat((best, offered[:, group]), 1).topk(num_slots, dim=1)
        winners = torch.cat((who, rivals.expand(rows, -1)), 1).gather(1, strongest.indices)
        ends = segments.completes(group)
        best = strongest.values if ends is None else torch.where(ends[:, None], strongest.values, best)
        who = winners if ends is None else torch.where(ends[:, None], winners, who)
        history.append(who)
    return torch.stack(history, 1)


def _taken(pool: Float[Tensor, "R P E"], which: Int[Tensor, "R C M"]) -> Float[Tensor, "R C M E"]:
    """Entries by their numbers."""
    flat = which.flatten(1)
    taken: Tensor = pool.gather(1, flat[..., None].expand(-1, -1, pool.shape[-1])).unflatten(1, which.shape[1:])
    return taken


def read(
    query: Float[Tensor, "B T E"], standing: Standing, sinks: Float[Tensor, " H"], segments: Segments
) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "R G S H M"]]:
    """What each token finds in the slots of its segment, heads side by side, and how strongly it looked at each."""
    heads = len(sinks)
    asked = segments.spread(query).unflatten(-1, (heads, -1)).transpose(2, 3)  # (R, G, H, S, K)
    keys, values = standing.contents.unflatten(-1, (2, heads, -1)).permute(3, 0, 1, 4, 2, 5)  # (R, G, H, M, K) each
    scores = (asked @ keys.transpose(-1, -2)).float() / math.sqrt(keys.shape[-1])
    scores = scores + F.logsigmoid(standing.strengths)[:, :, None, None, :]
    nothing = sinks.float().view(1, 1, heads, 1, 1).expand(*scores.shape[:-1], 1)
    weights = torch.cat((scores, nothing), -1).softmax(-1)[..., :-1]
    found = (weights.to(values.dtype) @ values).transpose(2, 3).flatten(3)
    return segments.gather(found), weights.transpose(2, 3)
