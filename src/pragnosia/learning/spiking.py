"""Rules for a spiking language model: who hears what of the readout's error, and what a synapse makes of it.

The readout is linear and learns its exact gradient in every rule (the delta rule: pre times the error of post). The
synapse from i to k, and the currents that tokens are, learn by what a sum at membrane k is worth in each step, G:

    dL/dW[i, k] = sum_t z_i[t - delay] G_k[t]            a token's current is the same with 1 in the place of z

    surrogate      G is the gradient through time, slopes in a spike's place         unrolled.py
    eprop          G without what goes through other neurons' spikes                 Bellec et al. 2020,
                   feedback: symmetric (the readout's weights) or random             doi:10.1038/s41467-020-17236-y
    factorised     G_k[t] = sum_{s >= t} leak^(s-t) sum_{u >= s} ...: psi and error  OTTT: Xiao et al. 2022,
                   of one moment, times what the source left behind, faded twice     arXiv 2210.04195, eq. 10
    dfa            the same with a random matrix from the error to all neurons, read   Nøkland 2016, arXiv 1609.01596,
                   or not, in the place of the readout and of what leads there         eq. 2
    three_factor   G_k = -filtered( (z_k - rho_k) dopamine ), rho the chance that a  Fremaux and Gerstner 2016,
                   noisy neuron fires there: nobody hears whose error it was         doi:10.3389/fncir.2015.00085
    delta          G = 0: synapses and currents stay

Dopamine is what came better than expected, log p(next token) less its mean over the batch, and reaches synapses that
were eligible up to a few tokens before. G is added up backwards over the window; a neuron that ran forwards would carry
for it, beyond weights: surrogate all activations; e-prop two numbers for each synapse; factorised and dfa one or two
for each neuron; three_factor one for each synapse. Rules that hear of no error: spiking_synapses.py.

T tokens, K steps a token, S = T K, B rows, N neurons, F features of the readout, V vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.learning.rule import SPIKING_RULES, Lesson, Named
from pragnosia.model.exits import ExitLesson
from pragnosia.spiking.hearing import Heard
from pragnosia.spiking.neurogen import NeuroGenForCausalLM
from pragnosia.spiking.unrolled import Film, changes_of

SEED = 0
FEEDBACKS = ("symmetric", "random")


@dataclass(frozen=True)
class Said:
    """What the readout said of a window, and how wrong it was."""

    loss: Float[Tensor, ""]
    error: Float[Tensor, "T B V"]
    """The loss's slope by each logit, times the batch's share; 0 for the last token, whose successor is not known."""
    chances: Float[Tensor, "T B"]
    """Log p of each token's successor [nats]; of the last 0."""


class SpikingRule(ABC):
    """What all rules share; each says itself what it changes and how it learns."""

    rate = 0.0

    def __init__(self, *, autocast: torch.dtype | None = None) -> None:
        self.autocast = autocast
        """What products are computed in: tokens' currents, the readout, what synapses wish. Membranes stay fp32."""
        self.pending: list[tuple[Tensor, Tensor]] = []
        """Weights and what they change by, of rules that have a rate of their own, within a step."""

    def learn(
        self, model: nn.Module, tokens: Int[Tensor, "B T"], share: float, exits: ExitLesson | None = None
    ) -> Lesson:
        """One window of text; gradients are added to `.grad`, times `share`."""
        with torch.autocast(tokens.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.teach(model, tokens, share, exits)

    @abstractmethod
    def teach(
        self, model: nn.Module, tokens: Int[Tensor, "B T"], share: float, exits: ExitLesson | None = None
    ) -> Lesson:
        """The rule itself."""

    def settle(self, model: nn.Module, lessons: Sequence[Lesson]) -> None:
        """What needs no optimiser: it would make full steps of what is mostly chance."""
        with torch.no_grad():
            for weight, change in self.pending:
                weight.sub_(change, alpha=self.rate)
        self.pending.clear()

    @staticmethod
    def lesson(said: Said, heard: Heard) -> Lesson:
        """What came of a window."""
        return _lesson(said.loss, heard)


@final
class Surrogate(SpikingRule):
    """Back-propagation through time with a slope in each spike's place."""

    def changes(self, model: nn.Module) -> Iterable[Named]:
        """Every parameter that asks for a gradient."""
        return learners(model)

    def teach(
        self, model: nn.Module, tokens: Int[Tensor, "B T"], share: float, exits: ExitLesson | None = None
    ) -> Lesson:
        """One forward and one backward pass."""
        mind = spiking(model, "surrogate", exits)
        heard = silenced(mind, mind.hear(tokens, slopes=True))
        loss = _loss(mind.read(heard.traces), tokens)
        (loss * share).backward()
        return _lesson(loss, heard)


@final
class EProp(SpikingRule):
    """Eligibility of each synapse times an error that its neuron hears."""

    def __init__(self, *, autocast: torch.dtype | None = None, feedback: str = "symmetric") -> None:
        super().__init__(autocast=autocast)
        if feedback not in FEEDBACKS:
            raise ConfigError(unknown_name("feedback", feedback, FEEDBACKS))
        self.feedback = feedback

    def changes(self, model: nn.Module) -> Iterable[Named]:
        """Every parameter that asks for a gradient."""
        return learners(model)

    def teach(
        self, model: nn.Module, tokens: Int[Tensor, "B T"], share: float, exits: ExitLesson | None = None
    ) -> Lesson:
        """The error comes by the readout's own weights, or by random ones that never change."""
        mind = spiking(model, "eprop", exits)
        heard = silenced(mind, mind.hear(tokens, slopes=True, through_spikes=False))
        said = taught(mind, heard, tokens, share)
        heard.traces.backward(
            mind.read.back(said.error)
            if self.feedback == "symmetric"
            else said.error @ _random(mind, mind.read.features)
        )
        return _lesson(said.loss, heard)


@final
class Factorised(SpikingRule):
    """What the source remembers, times error and slope of the moment: nothing is kept for a synapse."""

    def changes(self, model: nn.Module) -> Iterable[Named]:
        """Every parameter that asks for a gradient."""
        return learners(model)

    def teach(
        self, model: nn.Module, tokens: Int[Tensor, "B T"], share: float, exits: ExitLesson | None = None
    ) -> Lesson:
        """No gradient goes through time."""
        mind = spiking(model, "factorised", exits)
        heard, film = watched(mind, tokens)
        said = taught(mind, heard, tokens, share)
        parts = mind.read.back(said.error).detach().chunk(len(mind.kappas), -1)
        steps = len(film.spikes) // len(heard.traces)
        slopes = mind.read_of(film.slopes[steps - 1 :: steps])
        worth = sum(backwards(part * slopes, kappa) for part, kappa in zip(parts, mind.kappas, strict=True))
        at_ends = torch.zeros_like(film.spikes)
        at_ends[steps - 1 :: steps] = mind.spread_out(worth)  # type: ignore[arg-type]
        wished(mind, heard, film, backwards(at_ends, mind.circuit.leak))
        return _lesson(said.loss, heard)


@final
class DirectFeedback(SpikingRule):
    """Every neuron of every region, read or not, hears the readout's error through random weights of its own."""

    def changes(self, model: nn.Module) -> Iterable[Named]:
        """Every parameter that asks for a gradient."""
        return learners(model)

    def teach(
        self, model: nn.Module, tokens: Int[Tensor, "B T"], share: float, exits: ExitLesson | None = None
    ) -> Lesson:
        """As the factorised form, with the random matrix in the place of all that leads to the readout."""
        mind = spiking(model, "dfa", exits)
        heard, film = watched(mind, tokens)
        said = taught(mind, heard, tokens, share)
        neurons, steps = film.spikes.shape[-1], len(film.spikes) // len(heard.traces)
        told = (said.error @ _random(mind, neurons)) * film.slopes[steps - 1 :: steps]
        at_ends = torch.zeros_like(film.spikes)
        at_ends[steps - 1 :: steps] = sum(backwards(told, kappa) for kappa in mind.kappas)
        wished(mind, heard, film, backwards(at_ends, mind.circuit.leak))
        return _lesson(said.loss, heard)


@final
class ThreeFactor(SpikingRule):
    """Before, behind, and dopamine: one number that all synapses hear says whether it went better than expected."""

    def __init__(
        self,
        *,
        autocast: torch.dtype | None = None,
        rate: float = 0.1,
        eligible_tokens: float = 1.5,
        noise: float = 0.2,
    ) -> None:
        super().__init__(autocast=autocast)
        self.rate = rate
        for name, value in (("rate", rate), ("eligible_tokens", eligible_tokens), ("noise", noise)):
            if not value > 0:
                raise ConfigError(f"learning.{name} is {value}; it must be greater than 0")
        self.fading = math.exp(-1 / eligible_tokens)
        self.noise = noise
        """In thresholds: how far a neuron may be from its own for its firing to count as chance."""

    def changes(self, model: nn.Module) -> Iterable[Named]:
        """Every parameter that asks for a gradient."""
        return learners(model)

    def teach(
        self, model: nn.Module, tokens: Int[Tensor, "B T"], share: float, exits: ExitLesson | None = None
    ) -> Lesson:
        """The readout hears its error, everyone else only dopamine."""
        mind = spiking(model, "three_factor", exits)
        heard, film = watched(mind, tokens)
        said = taught(mind, heard, tokens, share)
        surprise = said.chances.clone()
        surprise[:-1] -= surprise[:-1].mean()
        surprise[-1] = 0
        dopamine = backwards(surprise, self.fading) * (share / max(surprise[:-1].numel(), 1))
        steps = len(film.spikes) // len(heard.traces)
        chance = (film.margins / (self.noise * mind.circuit.threshold)).sigmoid_()
        free = (film.slopes > 0) | (film.spikes > 0)  # neither refractory, nor held down, nor far from its threshold
        unusual = (film.spikes - chance) * free * dopamine.repeat_interleave(steps, 0)[..., None]
        wished(mind, heard, film, backwards(-unusual, mind.circuit.leak), self.pending)
        return _lesson(said.loss, heard)


@final
class Delta(SpikingRule):
    """The readout alone: what a brain that stays as it was drawn is good for."""

    def changes(self, model: nn.Module) -> Iterable[Named]:
        """The readout."""
        return [one for one in learners(model) if one[0].startswith("read.")]

    def teach(
        self, model: nn.Module, tokens: Int[Tensor, "B T"], share: float, exits: ExitLesson | None = None
    ) -> Lesson:
        """The brain runs by events where it can: nothing of its steps is needed."""
        mind = spiking(model, "delta", exits)
        with torch.no_grad():
            heard = silenced(mind, mind.hear(tokens))
        return _lesson(taught(mind, heard, tokens, share).loss, heard)


def spiking(model: nn.Module, rule: str, exits: ExitLesson | None) -> NeuroGenForCausalLM:
    """The model, where it is one. Raises ConfigError."""
    if not isinstance(model, NeuroGenForCausalLM):
        named = ", ".join(SPIKING_RULES)
        raise ConfigError(f"the rules {named} are defined for a spiking model, this is a {type(model).__name__}")
    assert exits is None, f"{rule}: a spiking model has no exits"
    if model.config.is_int8:
        raise ConfigError("this model's weights are int8, which cannot learn; train the model it was packed from")
    return model


def learners(model: nn.Module) -> list[Named]:
    """Every parameter that asks for a gradient."""
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def watched(mind: NeuroGenForCausalLM, tokens: Tensor) -> tuple[Heard, Film]:
    """With what happened in every step; only currents lead back."""
    with torch.no_grad():
        heard = silenced(mind, mind.hear(tokens, slopes=True))
    assert heard.film is not None
    return heard, heard.film


def silenced(mind: NeuroGenForCausalLM, heard: Heard) -> Heard:
    """What the readout hears, of which a share is silent while the model learns (`dropout`)."""
    share = float(mind.config.dropout)
    if not share or not mind.training:
        return heard
    if heard.fires is not None:
        return replace(heard, fires=replace(heard.fires, times=F.dropout(heard.fires.times, share)))
    return replace(heard, whole=(heard.counts, F.dropout(heard.traces, share)))


def taught(mind: NeuroGenForCausalLM, heard: Heard, tokens: Int[Tensor, "B T"], share: float) -> Said:
    """Let the readout learn by its own error, and tell it."""
    logits = mind.read(heard.traces.detach()) if heard.fires is None else mind.say(heard)[0]
    loss = _loss(logits, tokens)
    (loss * share).backward()
    with torch.no_grad():
        after = tokens.T.roll(-1, 0)[..., None]
        chances = logits.float().log_softmax(-1)
        error = chances.exp()
        error.scatter_add_(-1, after, -torch.ones_like(error[..., :1]))
        error[-1] = 0
        told = chances.gather(-1, after)[..., 0]
        told[-1] = 0
    return Said(loss.detach(), error * (share / max(error[:-1, :, 0].numel(), 1)), told)


def _loss(logits: Float[Tensor, "T B V"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
    return F.cross_entropy(logits[:-1].flatten(0, 1).float(), tokens.T[1:].flatten())


def wished(
    mind: NeuroGenForCausalLM,
    heard: Heard,
    film: Film,
    worth: Float[Tensor, "S B N"],
    pending: list[tuple[Tensor, Tensor]] | None = None,
    *,
    currents: bool = True,
) -> None:
    """What these worths mean for synapses and currents: added to `.grad`, or to what is `pending`."""
    circuit, wires = mind.circuit, mind.synapses
    wishes = list(zip(wires, changes_of(circuit, film.spikes, worth, wires), strict=True))
    if currents:
        config: Any = mind.config
        parts = torch.cat([worth[..., circuit.span(name)] for name in config.into], -1)
        each = parts.unflatten(0, (len(heard.traces), -1)).sum(1)
        entering = list(mind.enter.parameters())
        drive = mind.currents(heard.tokens, heard.begun.past)
        wishes += zip(entering, torch.autograd.grad(drive, entering, each), strict=True)
    for weight, change in wishes:
        if change is None:
            continue
        change = change.to(weight.dtype)
        if pending is not None:
            pending.append((weight, change))
        else:
            weight.grad = change if weight.grad is None else weight.grad + change


def backwards(x: Float[Tensor, "T ..."], keep: Tensor | float) -> Float[Tensor, "T ..."]:
    """y[t] = keep y[t+1] + x[t]."""
    out, after = torch.empty_like(x), torch.zeros_like(x[0])
    for at in reversed(range(len(x))):
        after = torch.add(x[at], after * keep, out=out[at])
    return out


def _random(mind: NeuroGenForCausalLM, features: int) -> Float[Tensor, "V F"]:
    """Weights in place of the readout's, the same at every step and after every resumption."""
    chance = torch.Generator().manual_seed(SEED)
    drawn = torch.randn(len(mind.read.up), features, generator=chance) * features**-0.5
    there: Tensor = drawn.to(mind.device)
    return there


def _lesson(loss: Tensor, heard: Heard) -> Lesson:
    return Lesson(loss.detach(), (), heard.mean)
