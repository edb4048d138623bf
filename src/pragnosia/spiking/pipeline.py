"""Words through regions: one at a time, or each entering as soon as the last has left the first region.

A word is a current into one region for K steps; its answer is the spikes of another region, L steps later, where L is
the length of the longest way between them that runs forward.

    sequential    the next word enters when the answer is there    K + L steps a word
    pipelined     the next word enters at once                     K steps a word: regions work on different words
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.running import run
from pragnosia.spiking.state import BrainState


@dataclass(frozen=True, kw_only=True)
class Route:
    """Where words enter and leave, and how long they are held."""

    into: str = "thalamus"
    out: str = "broca"
    steps_per_word: int = 10

    def __post_init__(self) -> None:
        if self.steps_per_word < 1:
            raise ConfigError(f"steps_per_word is {self.steps_per_word}; a word takes at least one step")


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a brain said to a row of words."""

    spikes: Int32[Tensor, "T B N"]
    """Of each neuron of the last region while a word's answer was read."""
    steps: int
    """Taken in all."""


def journey(brain: Brain, into: str, out: str) -> int:
    """Steps of the longest way forward, by the shortest delay of each projection. Raises ConfigError for none."""
    for name in (into, out):
        brain.region(name)
    forward = [one for one in brain.config.projections if one.role == "afferent" and one.source != one.target]
    ways = {one: brain.config.delay_steps(one)[0] for one in forward}

    def longest(name: str, seen: frozenset[str]) -> int | None:
        if name == out:
            return 0
        onward = [
            steps + rest
            for one, steps in ways.items()
            if one.source == name and one.target not in seen
            if (rest := longest(one.target, seen | {one.target})) is not None
        ]
        return max(onward, default=None)

    found = longest(into, frozenset({into}))
    if found is None:
        raise ConfigError(f"no afferent projections lead from {into} to {out}; wire a way or name other regions")
    return found


def present(
    brain: Brain,
    state: BrainState,
    words: Sequence[Float[Tensor, "B N"]],
    route: Route,
    *,
    pipelined: bool = True,
    threads: int = 1,
) -> tuple[Answers, BrainState]:
    """Say words (currents [mV] into the first region) and read the answers. Raises ConfigError.

    At the end nothing is left unanswered; the last answer is read while no word is said.
    """
    held, latency = route.steps_per_word, journey(brain, route.into, route.out)
    period = held if pipelined else held + latency
    said = [(number * period, number * period + held) for number in range(len(words))]
    heard = [(begin + latency, end + latency) for begin, end in said]
    edges = sorted({0, *(edge for span in said + heard for edge in span)})
    spikes = torch.zeros(len(words), state.rows, brain.region(route.out).config.size, dtype=torch.int32)
    state = state.cloned()
    for begin, end in pairwise(edges):
        speaking, hearing = begin // period, (begin - latency) // period
        now = speaking < len(words) and begin < said[speaking][1]
        activity, state = run(
            *(brain, state, end - begin, {route.into: words[speaking]} if now else None),
            tally=(route.out,),
            threads=threads,
            consume=True,
        )
        if 0 <= hearing < len(words) and begin < heard[hearing][1]:
            spikes[hearing] += activity.tally[route.out]
    return Answers(spikes=spikes, steps=edges[-1]), state
