"""Fires: who fired in each token, as a list, and what such a list is worth without the silent.

    through(W)[t, b] = sum_n counts[t, b, n] W[n]               the rows of who fired are read, and no others
    faded(kappa)     = sum_t kappa^(T-1-t) counts[t]            what of it is left after the last token

T tokens, B rows, N neurons, R numbers of a neuron's row, E entries of the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

_BLOCK = 64
"""Rows that are laid out at once on the way back."""


@dataclass(frozen=True, kw_only=True)
class Fires:
    """Of every token and row, in their order, the neurons that fired, and how often."""

    tokens: int
    rows: int
    neurons: int
    starts: Int64[Tensor, " TB_plus_1"]
    """Where the entries of each token and row begin, and the end."""
    who: Int64[Tensor, " E"]
    times: Float[Tensor, " E"]

    @classmethod
    def listed(cls, counts: Sequence[Tensor]) -> Fires:
        """From the counts (B, N) of each token."""
        rows, neurons = counts[0].shape
        found = [one.nonzero(as_tuple=True) for one in counts]
        each = torch.cat([row.bincount(minlength=rows) for row, _ in found])
        times = [one[at].float() for one, at in zip(counts, found, strict=True)]
        return cls(
            tokens=len(counts),
            rows=rows,
            neurons=neurons,
            starts=F.pad(each.cumsum(0), (1, 0)),
            who=torch.cat([who for _, who in found]),
            times=torch.cat(times),
        )

    @property
    def mean(self) -> Float[Tensor, ""]:
        """Spikes of a neuron in a token."""
        return self.times.sum() / (self.tokens * self.rows * self.neurons)

    @property
    def each(self) -> Float[Tensor, " N"]:
        """Spikes of each neuron, of all rows and tokens."""
        return self.who.bincount(self.times.double(), minlength=self.neurons)

    def among(self, spans: Sequence[slice]) -> Fires:
        """Only neurons of these spans, numbered as if the spans stood side by side."""
        numbers = torch.full((self.neurons,), -1)
        size = 0
        for span in spans:
            numbers[span] = torch.arange(size, size + span.stop - span.start)
            size += span.stop - span.start
        who = numbers[self.who]
        here = who >= 0
        kept = F.pad(here.long().cumsum(0), (1, 0))
        return replace(self, neurons=size, starts=kept[self.starts], who=who[here], times=self.times[here])

    def dense(self) -> Float[Tensor, "T B N"]:
        """With the silent, as zeros."""
        return self.part(0, self.tokens * self.rows).view(self.tokens, self.rows, self.neurons)

    def through(self, weights: Tensor, scale: Float[Tensor, " N"] | None = None) -> Float[Tensor, "T B R"]:
        """The sum of who fired, times weights (N, R), which are int8 with a scale; rows of the silent are not read."""
        if scale is not None:
            told: Tensor = F.embedding_bag(
                torch.arange(len(self.who), device=self.who.device),
                weights[self.who].float(),
                self.starts,
                mode="sum",
                per_sample_weights=self.times * scale[self.who],
                include_last_offset=True,
            )
        else:
            told = _Summed.apply(self, weights)  # type: ignore[no-untyped-call]
        return told.view(self.tokens, self.rows, -1)

    def part(self, begin: int, end: int) -> Float[Tensor, "M N"]:
        """Some of the tokens' rows, counted through, with the silent."""
        first, last = int(self.starts[begin]), int(self.starts[end])
        out = self.times.new_zeros(end - begin, self.neurons)
        places = torch.repeat_interleave(torch.arange(end - begin), self.starts[begin : end + 1].diff())
        out[places, self.who[first:last]] = self.times[first:last]
        return out

    def faded(self, kappa: float) -> Float[Tensor, "B N"]:
        """What a trace holds after the last token, of one that was empty before."""
        place = self._places()
        age = self.tokens - 1 - place // self.rows
        out = self.times.new_zeros(self.rows * self.neurons)
        out.index_add_(0, place % self.rows * self.neurons + self.who, self.times * kappa ** age.to(self.times.dtype))
        return out.view(self.rows, self.neurons)

    def _places(self) -> Int64[Tensor, " E"]:
        """The token and row of each entry, as one number."""
        return torch.repeat_interleave(torch.arange(len(self.starts) - 1), self.starts.diff())


class _Summed(torch.autograd.Function):
    """Forwards by the list, backwards by products of some rows at a time.

    Of a training batch most neurons fired in some token: adding to them entry by entry took more than twice as long.
    """

    @staticmethod
    def forward(ctx: Any, fires: Fires, weights: Tensor) -> Tensor:
        ctx.fires = fires
        told: Tensor = F.embedding_bag(
            fires.who, weights, fires.starts, mode="sum", per_sample_weights=fires.times, include_last_offset=True
        )
        return told

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad, fires = grads[0], ctx.fires
        out = grad.new_zeros(fires.neurons, grad.shape[1])
        for begin in range(0, len(grad), _BLOCK):
            end = min(begin + _BLOCK, len(grad))
            out.addmm_(fires.part(begin, end).T, grad[begin:end])
        return None, out
