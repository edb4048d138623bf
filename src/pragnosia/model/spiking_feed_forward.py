"""Spiking feed-forward: hidden neurons integrate, leak and fire, and are heard by how often they did.

    i = W x + b                      a current, the same in each of the S steps that a token is shown
    u = a v + (1 - a) i              membrane, at rest (0) before the first step; a = exp(-1 / tau)
    z = H(u - theta)                 a spike
    v = u - z theta                  and what it takes from the membrane
    y = D (sum of z over the steps) / S + b'

The neuron is the LIF of spiking/neurons.py without refractoriness, a step for its millisecond. In training a spike's
slope, which is nowhere, is stood in for by 1 / (1 + k |u / theta - 1|)^2: SuperSpike, Zenke & Ganguli 2018,
doi:10.1162/neco_a_01086; what a spike takes from the membrane has none (Zenke & Vogels 2021, doi:10.1162/neco_a_01367).

Membranes begin at rest for every token, so a token's spikes hang on the token alone: nothing has to be carried, and a
text means the same however it is cut. What comes out is one of S + 1 rates, and exactly nothing where nobody fired.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.linear import Linear
from pragnosia.model.thalamus import Routing

if TYPE_CHECKING:
    from pragnosia.model.attention import Moment


@final
class _Spike(torch.autograd.Function):
    """1 where the margin (in thresholds) is positive, and a slope around there."""

    @staticmethod
    def forward(ctx: Any, margin: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(margin)
        ctx.slope = slope
        return (margin > 0).to(margin.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (margin,) = ctx.saved_tensors
        return grad / (1 + ctx.slope * margin.abs()).square(), None


def spike_rates(
    current: Float[Tensor, "*B F"], *, num_steps: int, tau_steps: float, threshold: float, slope: float
) -> Float[Tensor, "*B F"]:
    """Of neurons under a constant current, the share of the steps in which each spikes."""
    leak = math.exp(-1 / tau_steps)
    given = (1 - leak) * current
    v, count = torch.zeros_like(current), torch.zeros_like(current)
    for _ in range(num_steps):
        u = leak * v + given
        spikes: Tensor = _Spike.apply(u / threshold - 1, slope)  # type: ignore[no-untyped-call]
        v = u - threshold * spikes.detach()
        count = count + spikes
    return count / num_steps


@final
class SpikingFeedForward(nn.Module):
    """Up, integrate and fire, down. It routes nothing."""

    def __init__(self, config: PragnosiaConfig, layer: int) -> None:
        super().__init__()
        assert config.lif is not None
        self.organ = organ = config.lif
        self.up = Linear(config.hidden_size, organ.width, bias=organ.bias)
        self.down = Linear(organ.width, config.hidden_size, bias=organ.bias, writes_to_stream=True)

    @property
    def kept(self) -> int:
        """Numbers of a token that the way back needs beside its current and its rates: membranes, step by step."""
        return int(self.organ.num_steps) * int(self.organ.width)

    def rates(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B F"]:
        """The share of its steps in which each neuron spikes; in single precision, for a rounded membrane may not."""
        organ = self.organ
        return spike_rates(
            self.up(x).float(),
            num_steps=organ.num_steps,
            tau_steps=organ.tau_steps,
            threshold=organ.threshold,
            slope=organ.slope,
        )

    def forward(self, x: Float[Tensor, "*B D"], moment: Moment) -> tuple[Float[Tensor, "*B D"], Routing | None]:
        """Each token by itself, whatever the moment; no routing."""
        return self.down(self.rates(x).to(x.dtype)), None
