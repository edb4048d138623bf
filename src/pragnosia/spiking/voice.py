"""Where tokens enter a brain and leave it: currents in, traces of spikes out.

    drive    = threshold * sum_d codes[token d ago] (@ spread_d)      what tokens add to a membrane in a step [mV]
    y_j[t]   = kappa_j y_j[t-1] + counts[t]                           kappa = exp(-1 / trace_tokens), for each of J
    codes    = gain down [y_1 .. y_J]                                 gain = 1, or 1,024 / F where F is more
    logits   = up codes + bias                                        linear in the spikes

A step of Adam moves every weight by the learning rate, and codes by its sum over all features: the gain keeps that sum
what it is in a small brain, so that one rate fits both (Yang et al. 2022, arXiv 2203.03466, table 3).

Behind delay lines neurons hear the last D tokens, each line with weights of its own, so that what came before need not
be kept in spikes (Waibel et al. 1989, doi:10.1109/29.21701). A line before the text's beginning is silent.

Traces are linear in spikes and codes in traces, so that codes may fade in the place of traces: `events` reads the rows
of neurons that fired, and makes of every token R numbers instead of F.

V vocabulary, D lines, R rank, I neurons that tokens enter, N neurons that are read, J traces, F = J N features,
T tokens, B rows.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia.spiking.fires import Fires
from pragnosia.spiking.int8 import across, hold, scale_of, through

FEATURES = 1024
"""Of more of them each is heard less."""


SILENT = -1
"""In the place of a token where there was none."""


class Entrance(nn.Module):
    """Each token's own current into each neuron, or through codes of `rank` numbers; in multiples of the threshold.

    Lines lie side by side, the latest token's first: in `codes` (V, D I), or with a rank in `spread` (D R, I).
    """

    codes: Tensor
    spread: Tensor | None

    def __init__(self, vocabulary: int, neurons: int, rank: int | None, lines: int = 1, *, int8: bool = False) -> None:
        super().__init__()
        self.lines = lines
        hold(self, "codes", (vocabulary, rank or lines * neurons), int8=int8)
        if rank is None:
            self.spread = None
        else:
            hold(self, "spread", (lines * rank, neurons), int8=int8)

    def forward(self, tokens: Int[Tensor, "D-1+T B"]) -> Float[Tensor, "T B I"]:
        """Of the tokens behind the first D - 1, which those hear that are on the later lines."""
        codes, scale = nn.functional.embedding(tokens.clamp(min=0), self.codes), scale_of(self, "codes")
        if scale is not None:
            codes = codes * scale[tokens.clamp(min=0)][..., None]
        if self.lines == 1:
            return codes if self.spread is None else self._spread(codes)
        codes = codes * (tokens != SILENT)[..., None]
        count = len(tokens) - self.lines + 1
        begins = range(self.lines - 1, -1, -1)
        if self.spread is None:
            each = codes.unflatten(-1, (self.lines, -1))
            return torch.stack([each[begin : begin + count, :, d] for d, begin in enumerate(begins)]).sum(0)
        return self._spread(torch.cat([codes[begin : begin + count] for begin in begins], -1))

    def _spread(self, codes: Float[Tensor, "T B R"]) -> Float[Tensor, "T B I"]:
        assert self.spread is not None
        return through(codes, self.spread, scale_of(self, "spread"))


class Readout(nn.Module):
    """Linear neurons over traces of spikes."""

    down: Tensor | None
    up: Tensor

    def __init__(self, vocabulary: int, features: int, rank: int | None, *, int8: bool = False) -> None:
        super().__init__()
        if rank is None:
            self.down = None
        else:
            hold(self, "down", (features, rank), int8=int8)
        self.features = features
        self.gain = min(1.0, FEATURES / features)
        hold(self, "up", (vocabulary, rank or features), int8=int8)
        self.bias = nn.Parameter(torch.empty(vocabulary))

    def forward(self, traces: Float[Tensor, "... F"]) -> Float[Tensor, "... V"]:
        return self.say(self.codes(traces))

    def codes(self, traces: Float[Tensor, "... F"]) -> Float[Tensor, "... R"]:
        """What the tokens' weights are multiplied with."""
        return self.gain * (traces if self.down is None else through(traces, self.down, scale_of(self, "down")))

    def say(self, codes: Float[Tensor, "... R"]) -> Float[Tensor, "... V"]:
        """Logits."""
        return across(codes, self.up, scale_of(self, "up")) + self.bias

    def parts(self, traces: int) -> list[tuple[Tensor, Tensor | None]]:
        """Of `down`, the rows (N, R) of each trace and what they are scaled by."""
        assert self.down is not None
        neurons, scale = self.features // traces, scale_of(self, "down")
        scales = [None] * traces if scale is None else scale.split(neurons)
        return list(zip(self.down.split(neurons), scales, strict=True))

    def events(
        self, fires: Fires, before: Float[Tensor, "J B R"], kappas: list[float]
    ) -> tuple[Float[Tensor, "T B R"], Float[Tensor, "J B R"]]:
        """Codes after each token, and what each trace has of them after the last."""
        parts = [
            _Fading.apply(self.gain * fires.through(*part), begun, kappa)  # type: ignore[no-untyped-call]
            for part, begun, kappa in zip(self.parts(len(kappas)), before, kappas, strict=True)
        ]
        codes: Tensor = sum(parts)
        return codes, torch.stack([part[-1].detach() for part in parts])

    def back(self, error: Float[Tensor, "... V"]) -> Float[Tensor, "... F"]:
        """What an error of the logits is worth to each trace."""
        heard = self.gain * (error @ self.up)
        return heard if self.down is None else heard @ self.down.T


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
