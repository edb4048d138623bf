"""Adaptive spiking neurons behind delay lines on tiny Shakespeare: bits per character under each rule.

    python benchmarks/spiking/delay_lines.py [TEXT] [--quick] [--rules surrogate eprop ...] [--passes 4] [--held]

    u[t] = leak v[t-1] + bias + sum_d W_d code[x[t-d]] - z[t-1]       six delays, 0 to 5 characters; a step a character
    a[t] = rho a[t-1] + z[t-1]        z[t] = (v[t] > 1 + beta a[t])   psi = damp max(0, 1 - |margin|)
    y[t] = kappa y[t-1] + O z[t]      softmax(y + bias): the next character

No synapse leads from neuron to neuron: what a recurrent layer (characters.py) must keep in its spikes the lines bring.

    surrogate      all weights, through time, the reset and adaptation                    arXiv 1901.09948
    eprop          W_d by eligibility times the error heard through O; codes stay as      doi:10.1038/s41467-020-17236-y
                   they were drawn; no gradient through the reset
    eprop_random   the same with a random matrix in O's place
    delta          O alone, pre times the error of post (a third factor of each readout   Widrow and Hoff 1960
                   neuron's own); lines and neurons stay as they were drawn

E-prop is the gradient of a layer whose spikes pass none back (tests/learning/test_spiking_rules.py), and so it is taken
here, in windows of 16 steps. 32 streams of the first nine tenths, Adam. Scored on the last tenth in 64 streams, each
200 characters after it began, weights still; with --held on the last tenth of those nine, learning from the rest of
them: settings were chosen there. What an earlier run measured stays. Time is the processor's, of one thread.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from _bench import earlier, publish
from characters import BEFORE, default_text, numbered

RULES = ("surrogate", "eprop", "eprop_random", "delta")
DELAYS, RANK, STEPS, STREAMS, LISTENERS = 6, 20, 16, 32, 64
LEAST_TAU, MOST_TAU, TAU_A, TAU_OUT = 0.3, 1.0, 20.0, 0.5
"""[steps]; membranes' are spread evenly in logarithms."""
BETA, DAMP = 0.1, 0.5
FADING = 0.6
"""How much weaker each later line is where lines are left as drawn."""
WARM = 100
"""Updates until the rate is whole; it falls to nothing at the end."""


class Scan(torch.autograd.Function):
    """Currents (T, B, N) to spikes, and the way back; a state passes none."""

    @staticmethod
    def forward(ctx: Any, currents: Tensor, leak: Tensor, state: tuple[Tensor, ...], through_reset: bool) -> Any:
        v, a, z = state
        margins, spikes = torch.empty_like(currents), torch.empty_like(currents)
        rho = math.exp(-1 / TAU_A)
        for at, current in enumerate(currents):
            v = torch.addcmul(current, leak, v).sub_(z)
            a = (a * rho).add_(z)
            margin = torch.sub(v, a, alpha=BETA, out=margins[at]).sub_(1)
            z = spikes[at].copy_(margin > 0)
        ctx.save_for_backward(margins, leak)
        ctx.through_reset = through_reset
        ctx.mark_non_differentiable(v, a)
        return spikes, v, a

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        margins, leak = ctx.saved_tensors
        slopes = (1 - margins.abs()).clamp_min_(0).mul_(DAMP)
        worth, rho = torch.empty_like(slopes), math.exp(-1 / TAU_A)
        gv, ga = torch.zeros_like(slopes[0]), torch.zeros_like(slopes[0])
        for at in reversed(range(len(slopes))):
            gz = grads[0][at] + ga
            if ctx.through_reset:
                gz.sub_(gv)
            gm = gz.mul_(slopes[at])
            gv = torch.addcmul(gm, leak, gv, out=worth[at])
            ga = (ga * rho).sub_(gm, alpha=BETA)
        return worth, None, None, None


class Weights(NamedTuple):
    """Of the layer."""

    codes: Tensor
    """(V, R)"""
    lines: Tensor
    """(DELAYS R, N)"""
    bias: Tensor
    read: Tensor
    """(N, V)"""
    prior: Tensor


class State(NamedTuple):
    """What goes on from window to window."""

    v: Tensor
    a: Tensor
    z: Tensor
    y: Tensor


@dataclass(frozen=True)
class Layer:
    """The neurons, and by which rule they learn."""

    weights: Weights
    leak: Tensor
    rule: str
    feedback: Tensor | None

    @classmethod
    def drawn(cls, rule: str, letters: int, neurons: int, seed: int) -> Layer:
        """By its seed; a line that comes later starts weaker where nobody will learn by it."""
        torch.manual_seed(seed)
        lines = torch.randn(DELAYS, RANK, neurons) * (DELAYS * RANK) ** -0.5
        if rule == "delta":
            lines *= (FADING ** torch.arange(DELAYS) * DELAYS**0.5 * (1 - FADING**2) ** 0.5)[:, None, None]
        weights = Weights(
            torch.randn(letters, RANK),
            lines.flatten(0, 1),
            torch.zeros(neurons),
            torch.randn(neurons, letters) * neurons**-0.5,
            torch.zeros(letters),
        )
        feedback = torch.randn(letters, neurons) * neurons**-0.5 if rule == "eprop_random" else None
        taus = torch.exp(torch.linspace(math.log(LEAST_TAU), math.log(MOST_TAU), neurons))
        return cls(weights, torch.exp(-1 / taus), rule, feedback)

    def learners(self) -> list[Tensor]:
        """What the rule may change."""
        mine = {"surrogate": Weights._fields, "delta": ("read", "prior")}
        return [getattr(self.weights, name) for name in mine.get(self.rule, ("lines", "bias", "read", "prior"))]

    def silent(self, batch: int) -> State:
        """At rest."""
        rest = torch.zeros(batch, len(self.leak))
        return State(rest, rest, rest, torch.zeros(batch, len(self.weights.prior)))

    def __call__(self, letters: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        """Logits (T, B, V) of letters (DELAYS - 1 + T, B), the state behind them, and the spikes."""
        weights, steps = self.weights, len(letters) - DELAYS + 1
        coded = F.embedding(letters, weights.codes)
        heard = torch.cat([coded[DELAYS - 1 - late :][:steps] for late in range(DELAYS)], -1)
        spikes, v, a = Scan.apply(  # type: ignore[no-untyped-call]
            heard @ weights.lines + weights.bias, self.leak, state[:3], self.rule == "surrogate"
        )
        said = _read(spikes, weights.read, self.feedback)
        y, kept = state.y, []
        for now in said:
            y = math.exp(-1 / TAU_OUT) * y + now
            kept.append(y)
        after = State(*(part.detach() for part in (v, a, spikes[-1], y)))
        return torch.stack(kept) + weights.prior, after, spikes


def _read(spikes: Tensor, read: Tensor, feedback: Tensor | None) -> Tensor:
    """O z; with feedback the neurons hear of an error by that matrix and not by O."""
    if feedback is None:
        return spikes @ read
    heard = spikes @ feedback.T
    return spikes.detach() @ read + heard - heard.detach()


def main() -> None:
    """Every rule that was asked for; those of an earlier run stay in the JSON."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("text", nargs="?", type=Path, default=default_text())
    options.add_argument("--quick", action="store_true", help="20,000 characters, 64 neurons, one pass, no JSON")
    options.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    options.add_argument("--passes", type=float, default=4)
    options.add_argument("--neurons", type=int, default=1280)
    options.add_argument("--rate", type=float, default=5e-3)
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--held", action="store_true", help="the last tenth stays unseen; no JSON")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.neurons, chosen.passes = 64, 1
    ids, letters = numbered(chosen.text, 20_000 if chosen.quick else None)
    if chosen.held:
        ids = ids[: len(ids) * 9 // 10]
    found: dict[str, Any] = {}
    if not (chosen.quick or chosen.held) and Path(__file__).with_suffix(".json").exists():
        found = earlier(__file__, "runs")
    for rule in chosen.rules:
        for seed in chosen.seeds:
            arm = learned(rule, seed, ids, letters, chosen)
            print(rule, {key: round(value, 4) for key, value in arm.items()}, flush=True)
            found[f"{rule}, {chosen.passes:g} passes, seed {seed}"] = {"rule": rule} | arm
            if not (chosen.quick or chosen.held):
                told(found)


def told(found: dict[str, Any]) -> None:
    """The table, and the JSON."""
    names = ("bits_per_character", "spikes_per_neuron", "parameters", "learned", "passes", "seconds")
    rows = [[name, *(f"{arm[key]:.4g}" for key in names)] for name, arm in found.items()]
    question = "What do spiking neurons behind delay lines learn of tiny Shakespeare?"
    publish(question, ["run", *names], rows, {"runs": found}, __file__)


def learned(rule: str, seed: int, ids: Tensor, letters: int, chosen: argparse.Namespace) -> dict[str, float]:
    """One layer, one rule."""
    layer, cut = Layer.drawn(rule, letters, chosen.neurons, seed), len(ids) * 9 // 10
    mine = layer.learners()
    for weight in mine:
        weight.requires_grad_()
    streams = ids[: cut // STREAMS * STREAMS].view(STREAMS, -1).T
    before = torch.cat([streams.new_zeros(DELAYS - 1, STREAMS), streams])
    optimiser = torch.optim.Adam(mine, chosen.rate, betas=(0.9, 0.99))
    chunks = (len(streams) - 1) // STEPS
    updates = int(chosen.passes * chunks)
    began, state = time.process_time(), layer.silent(STREAMS)
    for number in range(updates):
        at = number % chunks * STEPS
        state = state if at else layer.silent(STREAMS)
        logits, state, _ = layer(before[at : at + DELAYS - 1 + STEPS], state)
        loss = F.cross_entropy(logits.flatten(0, 1), streams[at + 1 : at + STEPS + 1].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(mine, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = chosen.rate * min(1, (number + 1) / WARM) * (1 - number / updates)
        optimiser.step()
    seconds = time.process_time() - began
    bits, spikes = scored(layer, ids, cut)
    return {
        "bits_per_character": bits,
        "spikes_per_neuron": spikes,
        "parameters": sum(weight.numel() for weight in layer.weights),
        "learned": sum(weight.numel() for weight in mine),
        "passes": chosen.passes,
        "neurons": chosen.neurons,
        "rate": chosen.rate,
        "seed": seed,
        "seconds": seconds,
    }


@torch.no_grad()
def scored(layer: Layer, ids: Tensor, cut: int) -> tuple[float, float]:
    """Bits per character of what follows `cut`, and spikes of a neuron in a step."""
    length = (len(ids) - 1 - cut) // LISTENERS
    begins = cut + length * torch.arange(LISTENERS)
    places = torch.arange(-BEFORE - DELAYS + 1, length + 1)[:, None] + begins
    letters, state = ids[places], layer.silent(LISTENERS)
    nats = spikes = 0.0
    _, state, _ = layer(letters[: BEFORE + DELAYS - 1], state)
    for at in range(BEFORE, BEFORE + length, 50):
        window = letters[at : min(at + 50, BEFORE + length) + DELAYS - 1]
        logits, state, fired = layer(window, state)
        after = letters[at + DELAYS :][: len(logits)]
        nats += float(F.cross_entropy(logits.flatten(0, 1), after.flatten(), reduction="sum"))
        spikes += float(fired.mean()) * len(logits)
    return nats / length / LISTENERS / math.log(2), spikes / length


if __name__ == "__main__":
    main()
