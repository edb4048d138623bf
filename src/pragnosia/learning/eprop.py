"""A recurrent layer of adaptive spiking neurons, learned by surrogate gradients through time or forward by e-prop.

    v[t] = alpha v[t-1] + W x[t] + R z[t-1] - threshold z[t-1]             membrane
    a[t] = rho a[t-1] + z[t-1]           A = threshold + beta a            adaptation
    z[t] = (v[t] > A[t])                 psi = damp / threshold max(0, 1 - |v - A| / threshold)
    y[t] = kappa y[t-1] + O z[t]         loss = mean -log softmax(y[t])[target[t]]

    surrogate   the gradient through time with psi for the slope of a spike         Neftci et al. 2019, arXiv 1901.09948
    e-prop      dR[j, i] = sum_t L[j, t] filter_kappa(e[j, i, t])                    Bellec et al. 2020,
                e = psi (ev - beta ea)                                               doi:10.1038/s41467-020-17236-y,
                ev[i] = alpha ev[i] + z[i]    ea' = psi ev + (rho - beta psi) ea     eq. 4, 22-25
                L = (softmax(y) - onehot) O, or with random weights in O's place (random feedback)
    factorised  dR = sum_t (L psi)[j, t] filter_kappa(ev)[i, t]: only what the presynaptic neuron remembers; adaptation
                and the slope inside the filter are left out                         OTTT: Xiao et al. 2022,
                                                                                     arXiv 2210.04195, eq. 10

E-prop with symmetric feedback is the exact surrogate gradient of a layer whose recurrent spikes pass no gradient
(`through_spikes=False`). Memory per synapse beyond its weight: surrogate none, but T activations per neuron; e-prop two
numbers (ea and the filtered e) for each sequence; factorised none, two per neuron.

T time, B batch, I inputs, N neurons, V vocabulary. All functions are pure; weights are changed by whoever called.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One kind of neuron; beta 0 is one that does not adapt. Times in steps."""

    tau_v: float = 20.0
    tau_a: float = 200.0
    tau_out: float = 5.0
    threshold: float = 1.0
    beta: float = 0.1
    damp: float = 0.3

    @property
    def alpha(self) -> float:
        """What a membrane keeps in a step."""
        return math.exp(-1 / self.tau_v)

    @property
    def rho(self) -> float:
        """What adaptation keeps."""
        return math.exp(-1 / self.tau_a)

    @property
    def kappa(self) -> float:
        """What the readout keeps."""
        return math.exp(-1 / self.tau_out)

    def slope(self, above: Tensor) -> Tensor:
        """What stands for the derivative of a spike, of v - A."""
        return self.damp / self.threshold * (1 - above.abs() / self.threshold).clamp_min(0)


class Weights(NamedTuple):
    """Of one layer; also the shape of what a rule wishes for it."""

    enter: Float[Tensor, "N I"]
    recur: Float[Tensor, "N N"]
    read: Float[Tensor, "V N"]


class State(NamedTuple):
    """What is carried from step to step."""

    v: Float[Tensor, "B N"]
    a: Float[Tensor, "B N"]
    z: Float[Tensor, "B N"]
    y: Float[Tensor, "B V"]

    @classmethod
    def silent(cls, weights: Weights, batch: int) -> State:
        """At rest."""
        rest = weights.recur.new_zeros(batch, len(weights.recur))
        return cls(rest, rest, rest, weights.read.new_zeros(batch, len(weights.read)))


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, above: Tensor, cell: Cell) -> Tensor:
        ctx.save_for_backward(above)
        ctx.cell = cell
        return (above > 0).to(above.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.cell.slope(ctx.saved_tensors[0]), None


def step(
    weights: Weights, x: Float[Tensor, "B I"], state: State, cell: Cell, *, through_spikes: bool = True
) -> tuple[State, Float[Tensor, "B N"]]:
    """One step, and v - A. Recurrent spikes and the reset pass a gradient back where `through_spikes`."""
    sent = state.z if through_spikes else state.z.detach()
    v = cell.alpha * state.v + x @ weights.enter.T + sent @ weights.recur.T - cell.threshold * sent
    a = cell.rho * state.a + state.z
    above = v - cell.threshold - cell.beta * a
    z: Tensor = _Spike.apply(above, cell)  # type: ignore[no-untyped-call]
    return State(v, a, z, cell.kappa * state.y + z @ weights.read.T), above


def surrogate(
    weights: Weights,
    x: Float[Tensor, "T B I"],
    targets: Int[Tensor, "T B"],
    cell: Cell,
    state: State | None = None,
    *,
    through_spikes: bool = True,
) -> tuple[float, Weights, State]:
    """Loss [nats], its gradient through these steps, and the state behind them: truncated where `state` is given."""
    own = Weights(*(weight.detach().requires_grad_() for weight in weights))
    state = State.silent(weights, x.shape[1]) if state is None else state
    said = []
    for entered in x:
        state, _ = step(own, entered, state, cell, through_spikes=through_spikes)
        said.append(state.y)
    loss = F.cross_entropy(torch.stack(said).flatten(0, 1), targets.flatten())
    grads = torch.autograd.grad(loss, own)
    return float(loss.detach()), Weights(*grads), State(*(part.detach() for part in state))


class Eligibility(NamedTuple):
    """What sources (ev), synapses (ea, e) and the readout (z) remember; `slow` and `e` are empty where factorised."""

    ev: Float[Tensor, "B I+N"]
    slow: Float[Tensor, "B N I+N"]
    e: Float[Tensor, "B N I+N"]
    filtered: Float[Tensor, "B I+N"]
    read: Float[Tensor, "B N"]

    @classmethod
    def none(cls, weights: Weights, batch: int, *, factorised: bool) -> Eligibility:
        """Nothing yet."""
        neurons, sources = len(weights.recur), weights.enter.shape[1] + len(weights.recur)
        synapses = weights.recur.new_zeros(batch, 0 if factorised else neurons, sources)
        lines = weights.recur.new_zeros(batch, sources)
        return cls(lines, synapses, synapses, lines, weights.recur.new_zeros(batch, neurons))


@torch.no_grad()
def eprop(
    weights: Weights,
    x: Float[Tensor, "T B I"],
    targets: Int[Tensor, "T B"],
    cell: Cell,
    carried: tuple[State, Eligibility] | None = None,
    *,
    feedback: Float[Tensor, "V N"] | None = None,
    factorised: bool = False,
) -> tuple[float, Weights, tuple[State, Eligibility]]:
    """Loss [nats], the wish for the weights, and what goes on; nothing of the past is kept but traces.

    `feedback` stands in for the readout's own weights on the way back (random feedback).
    """
    batch = x.shape[1]
    if carried is None:
        carried = State.silent(weights, batch), Eligibility.none(weights, batch, factorised=factorised)
    state, past = carried
    back = weights.read if feedback is None else feedback
    wish = Weights(*(torch.zeros_like(weight) for weight in weights))
    both = torch.cat([wish.enter, wish.recur], 1)
    loss = 0.0
    for entered, target in zip(x, targets, strict=True):
        sources = torch.cat([entered, state.z], 1)
        state, above = step(weights, entered, state, cell)
        past = _remember(past, sources, cell.slope(above), state.z, cell, factorised=factorised)
        loss += float(F.cross_entropy(state.y, target)) / len(x)
        error = (state.y.softmax(-1) - F.one_hot(target, state.y.shape[1])) / (batch * len(x))
        heard = error @ back
        if factorised:
            both += (heard * cell.slope(above)).T @ past.filtered
        else:
            both += torch.einsum("bn,bni->ni", heard, past.e)
        wish.read.add_(error.T @ past.read)
    enter, recur = both.split([weights.enter.shape[1], len(weights.recur)], 1)
    return loss, Weights(enter, recur, wish.read), (state, past)


def _remember(
    past: Eligibility, sources: Tensor, slope: Tensor, spikes: Tensor, cell: Cell, *, factorised: bool
) -> Eligibility:
    """Traces that include a step: its sources were there before it, its slope and spikes come of it."""
    ev = cell.alpha * past.ev + sources
    read = cell.kappa * past.read + spikes
    if factorised:
        return Eligibility(ev, past.slow, past.e, cell.kappa * past.filtered + ev, read)
    psi = slope[:, :, None]
    own = psi * (ev[:, None] - cell.beta * past.slow)
    # what this step's spike adds to adaptation is felt from the next step on
    return Eligibility(ev, cell.rho * past.slow + own, cell.kappa * past.e + own, past.filtered, read)
