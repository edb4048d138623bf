"""Where tokens enter a brain and leave it: currents in, traces of spikes out.

    drive    = threshold * codes[token] (@ spread)                    what a token adds to a membrane in a step [mV]
    y_j[t]   = kappa_j y_j[t-1] + counts[t]                           kappa = exp(-1 / trace_tokens), for each of J
    logits   = up (down [y_1 .. y_J]) + bias                          linear in the spikes

V vocabulary, R rank, I neurons that tokens enter, N neurons that are read, J traces, T tokens, B rows.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Entrance(nn.Module):
    """Each token's own current into each neuron, or through codes of `rank` numbers; in multiples of the threshold."""

    def __init__(self, vocabulary: int, neurons: int, rank: int | None) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.empty(vocabulary, rank or neurons))
        self.spread = None if rank is None else nn.Parameter(torch.empty(rank, neurons))

    def forward(self, tokens: Int[Tensor, "T B"]) -> Float[Tensor, "T B I"]:
        codes = nn.functional.embedding(tokens, self.codes)
        return codes if self.spread is None else codes @ self.spread


class Readout(nn.Module):
    """Linear neurons over traces of spikes."""

    def __init__(self, vocabulary: int, features: int, rank: int | None) -> None:
        super().__init__()
        self.down = None if rank is None else nn.Parameter(torch.empty(rank, features))
        self.features = features
        self.up = nn.Parameter(torch.empty(vocabulary, rank or features))
        self.bias = nn.Parameter(torch.empty(vocabulary))

    def forward(self, traces: Float[Tensor, "... F"]) -> Float[Tensor, "... V"]:
        heard = traces if self.down is None else traces @ self.down.T
        return heard @ self.up.T + self.bias

    def back(self, error: Float[Tensor, "... V"]) -> Float[Tensor, "... F"]:
        """What an error of the logits is worth to each trace."""
        heard = error @ self.up
        return heard if self.down is None else heard @ self.down


class _Fading(torch.autograd.Function):
    """y[t] = kappa y[t-1] + x[t], and the same backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Tensor, kappa: float) -> Tensor:
        ctx.kappa = kappa
        return _faded(x, before, kappa, range(len(x)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad = grads[0]
        return _faded(grad, torch.zeros_like(grad[0]), ctx.kappa, reversed(range(len(grad)))), None, None


def _faded(x: Tensor, before: Tensor, kappa: float, order: Any) -> Tensor:
    out = torch.empty_like(x)
    for at in order:
        before = torch.add(x[at], before, alpha=kappa, out=out[at])
    return out


def traced(
    counts: Float[Tensor, "T B N"], before: Float[Tensor, "J B N"], kappas: list[float]
) -> tuple[Float[Tensor, "T B F"], Float[Tensor, "J B N"]]:
    """Traces after each token, side by side, and the last of them."""
    parts: list[Tensor] = [
        _Fading.apply(counts, begun, kappa)  # type: ignore[no-untyped-call]
        for begun, kappa in zip(before, kappas, strict=True)
    ]
    return torch.cat(parts, -1), torch.stack([part[-1].detach() for part in parts])
