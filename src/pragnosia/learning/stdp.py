"""Spike-timing-dependent plasticity by traces: who fires just before is strengthened, who fires just after weakened.

    r' = r exp(-dt / tau) + z                                              a trace of spikes, of 0 and 1
    dw[i, j] = + plus  pre_j  z_post[i]  -  minus  post_i  z_pre[j]        pair: Song et al. 2000, doi:10.1038/78829
    dw[i, j] = + pre_j (plus + plus3 slow_post_i) z_post[i]
               - post_i (minus + minus3 slow_pre_j) z_pre[j]               triplet: Pfister and Gerstner 2006,
                                                                           doi:10.1523/JNEUROSCI.1425-06.2006, eq. 3-4

Traces are those before the step's own spikes (Pfister's minus epsilon), so that spikes of one step do nothing to each
other. One pair of spikes, post d ms after pre, gives plus exp(-d / tau_plus). Memory: one number per neuron and trace
(2 for pairs, 4 for triplets), none per synapse.

B batch, I presynaptic, N postsynaptic neurons; times in ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Window:
    """Amplitudes and time constants; the triplet terms are silent unless given."""

    plus: float = 0.01
    minus: float = 0.0105
    tau_plus_ms: float = 20.0
    tau_minus_ms: float = 20.0
    plus3: float = 0.0
    minus3: float = 0.0
    tau_x_ms: float = 101.0
    """Of the slow presynaptic trace."""
    tau_y_ms: float = 125.0


@dataclass(frozen=True)
class Traces:
    """What neurons remember of their spikes; fast and slow, before and behind the synapse."""

    pre: Float[Tensor, "B I"]
    post: Float[Tensor, "B N"]
    slow_pre: Float[Tensor, "B I"]
    slow_post: Float[Tensor, "B N"]

    @classmethod
    def silent(cls, pre: Tensor, post: Tensor) -> Traces:
        """For spikes of these shapes, none of which has come."""
        return cls(*(torch.zeros_like(spikes) for spikes in (pre, post, pre, post)))


def stdp(
    pre: Float[Tensor, "B I"], post: Float[Tensor, "B N"], traces: Traces, window: Window, *, dt_ms: float = 1.0
) -> tuple[Float[Tensor, "N I"], Traces]:
    """The change of the weights by one step's spikes, summed over the batch, and the traces that include them."""
    faded = Traces(
        traces.pre * math.exp(-dt_ms / window.tau_plus_ms),
        traces.post * math.exp(-dt_ms / window.tau_minus_ms),
        traces.slow_pre * math.exp(-dt_ms / window.tau_x_ms),
        traces.slow_post * math.exp(-dt_ms / window.tau_y_ms),
    )
    stronger = (post * (window.plus + window.plus3 * faded.slow_post)).T @ faded.pre
    weaker = faded.post.T @ (pre * (window.minus + window.minus3 * faded.slow_pre))
    after = Traces(faded.pre + pre, faded.post + post, faded.slow_pre + pre, faded.slow_post + post)
    return stronger - weaker, after


def eligible(
    change: Float[Tensor, "N I"], eligibility: Float[Tensor, "N I"], *, tau_ms: float, dt_ms: float = 1.0
) -> Float[Tensor, "N I"]:
    """The synapse's own memory of what it would have done (three factors: before, behind, and a reward to come).

        e' = e exp(-dt / tau) + change                    dw = rate (reward - expected) e

    Izhikevich 2007, doi:10.1093/cercor/bhl152; Frémaux and Gerstner 2016, doi:10.3389/fncir.2015.00085, eq. 10.
    Memory: one number per synapse.
    """
    return eligibility * math.exp(-dt_ms / tau_ms) + change


def rewarded(
    eligibility: Float[Tensor, "N I"], reward: float, expected: float, *, rate: float, horizon: float = 0.05
) -> tuple[Float[Tensor, "N I"], float]:
    """The change a reward makes, by how much it was better than expected, and what is expected from then on."""
    surprise = reward - expected
    return rate * surprise * eligibility, expected + horizon * surprise
