"""Rules of a spiking language model whose synapses hear who fired, and of no error: pairs, triplets, Hebb, Oja.

The readout learns its exact gradient beside them; currents stay as they are. With r the trace of what the synapse
brought, of its target's membrane for hebb and oja, and z the target's spikes:

    stdp      + plus r z_post  - minus r_post z_pre                        Song et al. 2000, doi:10.1038/78829
    triplet   + plus3 r slow_post z_post  - minus r_post z_pre             Pfister and Gerstner 2006, the minimal model,
                                                                           doi:10.1523/JNEUROSCI.1425-06.2006, table 4
    hebb      + r z_post                                                   Hebb 1949
    oja       + (r - w) z_post                                             Oja 1982, doi:10.1007/BF00275687, eq. 3, of
                                                                           neurons that say 0 or 1: y^2 = y

Spikes count when they arrive. Hebb's rule grows without bound; Oja's comes to rest where a weight is what its source
brings when the target fires. Memory beyond weights: one trace for each neuron (hebb, oja), two (stdp), three (triplet);
here, as in spiking.py, what runs forwards is added up backwards over a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia.errors import ConfigError
from pragnosia.learning.plasticity import PAIRS, TRIPLETS
from pragnosia.learning.rule import Lesson, Named
from pragnosia.learning.spiking import SpikingRule, backwards, learners, spiking, taught, watched, wished
from pragnosia.learning.stdp import Window
from pragnosia.model.exits import ExitLesson
from pragnosia.spiking.neurogen import NeuroGenForCausalLM
from pragnosia.spiking.unrolled import Film


class _TwoFactors(SpikingRule):
    """Synapses by who fired, the readout by its error."""

    name = ""

    def __init__(self, *, autocast: torch.dtype | None = None, rate: float) -> None:
        super().__init__(autocast=autocast)
        if not rate > 0:
            raise ConfigError(f"learning.rate is {rate}; it must be greater than 0")
        self.rate = rate

    def changes(self, model: nn.Module) -> Iterable[Named]:
        """Synapses and readout."""
        return [one for one in learners(model) if not one[0].startswith("enter.")]

    def teach(
        self, model: nn.Module, tokens: Int[Tensor, "B T"], share: float, exits: ExitLesson | None = None
    ) -> Lesson:
        """What each synapse wants by who fired before and behind it."""
        mind = spiking(model, self.name, exits)
        heard, film = watched(mind, tokens)
        said = taught(mind, heard, tokens, share)
        scale = share / film.spikes[..., 0].numel()
        wished(mind, heard, film, self.worth(mind, film) * scale, self.pending, currents=False)
        self.also(mind, film, scale)
        return self.lesson(said, heard)

    def worth(self, mind: NeuroGenForCausalLM, film: Film) -> Float[Tensor, "S B N"]:
        """By how much a spike that arrives at this neuron in this step is to be weaker."""
        raise NotImplementedError

    def also(self, mind: NeuroGenForCausalLM, film: Film, scale: float) -> None:
        """What a synapse wants whatever arrives."""


class _Timing(_TwoFactors):
    window: Window

    def worth(self, mind: NeuroGenForCausalLM, film: Film) -> Float[Tensor, "S B N"]:
        """A source's spike before its target's strengthens, one after it weakens."""
        dt_ms, window, spikes = mind.brain.config.dt_ms, self.window, film.spikes
        before, behind = (math.exp(-dt_ms / tau) for tau in (window.tau_plus_ms, window.tau_minus_ms))
        # spikes of one moment do nothing to each other: each trace is that of before the step
        counted = window.plus * spikes
        if window.plus3:
            counted = spikes * (window.plus + window.plus3 * _earlier(spikes, math.exp(-dt_ms / window.tau_y_ms)))
        return window.minus * _earlier(spikes, behind) - (backwards(counted, before) - counted)


@final
class Pairs(_Timing):
    """Pair STDP."""

    name, window = "stdp", PAIRS

    def __init__(self, *, autocast: torch.dtype | None = None, rate: float = 1.0) -> None:
        super().__init__(autocast=autocast, rate=rate)


@final
class Triplets(_Timing):
    """Triplet STDP: a target that has just fired is strengthened more."""

    name, window = "triplet", TRIPLETS

    def __init__(self, *, autocast: torch.dtype | None = None, rate: float = 1.0) -> None:
        super().__init__(autocast=autocast, rate=rate)


@final
class Hebb(_TwoFactors):
    """What fires together wires together."""

    name = "hebb"

    def __init__(self, *, autocast: torch.dtype | None = None, rate: float = 0.01) -> None:
        super().__init__(autocast=autocast, rate=rate)

    def worth(self, mind: NeuroGenForCausalLM, film: Film) -> Float[Tensor, "S B N"]:
        """What arrived and has not leaked away when the target fires."""
        return _together(mind, film)


@final
class Oja(_TwoFactors):
    """Hebb's rule that comes to rest."""

    name = "oja"

    def __init__(self, *, autocast: torch.dtype | None = None, rate: float = 0.01) -> None:
        super().__init__(autocast=autocast, rate=rate)

    def worth(self, mind: NeuroGenForCausalLM, film: Film) -> Float[Tensor, "S B N"]:
        """As Hebb's."""
        return _together(mind, film)

    def also(self, mind: NeuroGenForCausalLM, film: Film, scale: float) -> None:
        """Each spike of a target takes from all its synapses a share of what they are."""
        fired, synapses = film.spikes.sum((0, 1)) * scale, mind.synapses
        for way in mind.circuit.ways:
            weight = synapses[way.number]
            if not weight.requires_grad:
                continue
            each = fired[way.target] if way.reaches is None else fired[way.reaches.long()]
            if way.reaches is not None and len(weight) == 1:  # one for all
                each = each.sum(0, keepdim=True)
            self.pending.append((weight, weight.detach() * each))


def _together(mind: NeuroGenForCausalLM, film: Film) -> Float[Tensor, "S B N"]:
    return -backwards(film.spikes, mind.circuit.leak)


def _earlier(spikes: Float[Tensor, "S B N"], keep: float) -> Float[Tensor, "S B N"]:
    """The trace of a neuron's own spikes, without the step's own."""
    return backwards(spikes.flip(0), keep).flip(0) - spikes
