"""A brain over a window of tokens, and the way back through time with a slope in a spike's place.

    forward     circuit.py's equations, K steps a token; what comes out is how often each neuron fired in each token
    slope       psi = damp / threshold max(0, 1 - |margin| / (width threshold)), 0 for who was refractory or lost
    backward    gz[t] = dL/dz[t] + sum_d W_d gu[t+d] - threshold gv[t] + gw[t]
                gu[t] = gv[t] + psi[t] gz[t]     gv[t-1] = leak gu[t]
                dL/ddrive[t] = gu[t]             gw[t-1] = fading gw[t] - adaptation psi[t] gz[t]
                dL/dW_d = sum_t z[t] gu[t+d]

Surrogate gradients: Neftci et al. 2019, arXiv 1901.09948. With `through_spikes=False` the terms of W and of the reset
are left out of gz: that gradient is e-prop's with symmetric feedback, number by number (Bellec et al. 2020,
doi:10.1038/s41467-020-17236-y), here added up backwards over the window instead of forwards with two numbers for each
synapse (learning/eprop.py, which the tests hold it to). The state that a window begins with passes nothing back.

T tokens, K steps a token, S = T K steps, B rows, I neurons that tokens enter, N neurons of all regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pragnosia.spiking.circuit import Circuit
from pragnosia.spiking.inhibition import inhibited
from pragnosia.spiking.state import BrainState


@dataclass(frozen=True, kw_only=True)
class Slope:
    """What stands for the derivative of a spike."""

    damp: float = 0.5
    width: float = 1.0
    """In thresholds."""

    def __call__(self, margins: Float[Tensor, "S B N"], threshold: Float[Tensor, " N"]) -> Float[Tensor, "S B N"]:
        return (1 - margins.abs() / (self.width * threshold)).clamp_min_(0).mul_(self.damp / threshold)


@dataclass(frozen=True)
class Film:
    """What happened in a window, step by step."""

    spikes: Float[Tensor, "S B N"]
    margins: Float[Tensor, "S B N"]
    slopes: Float[Tensor, "S B N"]


@dataclass(frozen=True)
class Window:
    """What came of a window."""

    counts: Float[Tensor, "T B N"]
    """Spikes of each neuron in each token; slopes lead back from here."""
    state: BrainState
    film: Film | None
    """None where nobody asked for slopes."""


def unroll(  # noqa: PLR0913
    circuit: Circuit,
    weights: Sequence[Tensor],
    drive: Float[Tensor, "T B I"],
    into: Sequence[slice],
    state: BrainState,
    *,
    steps: int = 1,
    slope: Slope | None = None,
    through_spikes: bool = True,
) -> Window:
    """Take `steps` steps for each token; `drive` is what each step adds to the membranes [mV] of the spans `into`.

    `weights` are those of the projections, in their order. Without a `slope` nothing of the steps is kept.
    """
    with torch.no_grad():
        counts, after, film = _forward(circuit, weights, drive, into, state, steps, slope)
    if film is not None and torch.is_grad_enabled():
        how = (circuit, tuple(into), film, counts, steps, through_spikes)
        counts = _Through.apply(how, drive, *weights)  # type: ignore[no-untyped-call]
    return Window(counts, after, film)


def _forward(
    circuit: Circuit,
    weights: Sequence[Tensor],
    drive: Tensor,
    into: Sequence[slice],
    state: BrainState,
    steps: int,
    slope: Slope | None,
) -> tuple[Tensor, BrainState, Film | None]:
    v, w, clock, ring = circuit.laid(state)
    tokens, rows = drive.shape[:2]
    total, depth = tokens * steps, circuit.depth
    counts = v.new_zeros(tokens, rows, v.shape[1])
    kept = v.new_empty((2, total, rows, v.shape[1])) if slope is not None else None
    silenced: list[Tensor | None] = []
    parts = drive.split([span.stop - span.start for span in into], -1)
    for at in range(total):
        u = torch.addcmul(circuit.bias, circuit.leak, v).add_(ring[at % depth])
        for span, part in zip(into, parts, strict=True):
            u[:, span] += part[at // steps]
        margin = torch.addcmul(circuit.threshold, circuit.adaptation, w).neg_().add_(u)
        spikes = (margin > 0).to(u.dtype)
        held = _held(circuit, spikes, margin, clock, u)
        ring[at % depth] = 0
        v = u.addcmul_(spikes, circuit.threshold, value=-1)
        w = (w * circuit.fading).add_(spikes)
        if circuit.refractory is not None:
            clock = torch.where(spikes > 0, circuit.refractory, clock.clamp(min=1) - 1)
        for way in circuit.ways:
            way.send(spikes, weights[way.number].detach(), ring, at)
        counts[at // steps] += spikes
        if kept is not None:
            kept[0, at], kept[1, at] = spikes, margin
            silenced.append(held)
    film = None
    if slope is not None and kept is not None:
        slopes = slope(kept[1], circuit.threshold)
        for at, held in enumerate(silenced):
            if held is not None:
                slopes[at].masked_fill_(held, 0)
        film = Film(kept[0], kept[1], slopes)
    return counts, circuit.taken_up((v, w, clock, ring), state.clock + total, total % depth), film


def _held(circuit: Circuit, spikes: Tensor, margin: Tensor, clock: Tensor, u: Tensor) -> Tensor | None:
    """Who may not fire whatever its margin: refractory, or pushed down by winners; `spikes` and `u` are changed."""
    held = None
    if circuit.refractory is not None:
        held = clock > 0
        spikes.masked_fill_(held, 0)
    for span, winners, inhibition in circuit.winners:
        part = spikes[:, span]
        if bool((part.sum(1) > winners).any()):
            down = inhibited(part, margin[:, span], winners=winners, inhibition_mv=inhibition)
            lost = torch.zeros_like(spikes, dtype=torch.bool)
            lost[:, span] = down > 0
            spikes.masked_fill_(lost, 0)
            u[:, span] -= down
            held = lost if held is None else held | lost
    return held


class _Through(torch.autograd.Function):
    """The way back; the way forward has been gone."""

    @staticmethod
    def forward(ctx: Any, how: Any, drive: Tensor, *weights: Tensor) -> Tensor:
        ctx.how = how
        ctx.save_for_backward(*weights)
        counts: Tensor = how[3]
        return counts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        circuit, into, film, _, steps, through = ctx.how
        weights = ctx.saved_tensors
        wishes = _backward(circuit, weights, film, grads[0], steps, through=through)
        drive = None
        if ctx.needs_input_grad[1]:
            drive = torch.cat([wishes[..., span] for span in into], -1)
            drive = drive.unflatten(0, (-1, steps)).sum(1)
        wanted = [weight if needed else None for weight, needed in zip(weights, ctx.needs_input_grad[2:], strict=True)]
        changes = changes_of(circuit, film.spikes, wishes, wanted)
        return None, drive, *changes


def _backward(
    circuit: Circuit, weights: Sequence[Tensor], film: Film, grad: Tensor, steps: int, *, through: bool
) -> Float[Tensor, "S B N"]:
    """What every membrane's sum is worth in every step: gu."""
    total, rows, neurons = film.spikes.shape
    gu = grad.new_zeros(total, rows, neurons)
    gv, gw = grad.new_zeros(rows, neurons), grad.new_zeros(rows, neurons)
    ahead = grad.new_zeros(circuit.depth + 1, rows, neurons)  # of the steps that spikes sent now arrive in
    backs = [(way, *one) for way in circuit.ways for one in way.back(weights[way.number]).items()] if through else []
    for at in reversed(range(total)):
        gz = grad[at // steps] + gw
        if through:
            gz.addcmul_(gv, circuit.threshold, value=-1)
            for way, delay, matrix in backs:
                gz[:, way.source] += (matrix @ ahead[(at + delay) % len(ahead), :, way.target].T).T
        gm = gz.mul_(film.slopes[at])
        now = gu[at]
        torch.add(gv, gm, out=now)
        ahead[at % len(ahead)] = now
        gv = circuit.leak * now
        gw = torch.mul(gw, circuit.fading).addcmul_(gm, circuit.adaptation, value=-1)
    return gu


def changes_of(
    circuit: Circuit, spikes: Float[Tensor, "S B N"], worth: Float[Tensor, "S B N"], weights: Sequence[Any]
) -> list[Tensor | None]:
    """dL/dW of each projection, where a sum at a membrane is `worth` so much; None where no weight asks for it."""
    return [
        None
        if (weight := weights[way.number]) is None or not weight.requires_grad
        else _change(way, spikes, worth, weight)
        for way in circuit.ways
    ]


def _change(way: Any, spikes: Tensor, wishes: Tensor, weights: Tensor) -> Tensor:
    """dL/dW of one projection."""
    if way.starts is None:
        sent = spikes[: len(spikes) - way.delay, :, way.source].flatten(0, 1)
        return sent.T @ wishes[way.delay :, :, way.target].flatten(0, 1)
    each = wishes.new_zeros(len(way.reaches))
    for at, now in enumerate(spikes):
        row, one = way.woken(now)
        when = at + way.delays[one].long()
        there = when < len(wishes)
        row, one, when = row[there], one[there], when[there]
        each.index_add_(0, one, wishes[when, row, way.reaches[one].long()])
    return each if len(weights) == len(each) else each.sum(0, keepdim=True)
