"""What a token costs a spiking language model, from the spikes that were counted, and how well it predicts a text.

    neuron updates        N K                                   K steps a token, whether a neuron fires or not
    synaptic operations   sum_n spikes[n] fan_out[n]            additions
    ends                  a token's current, traces, readout    multiply-accumulates, counted as two operations

Beside it the same wiring without spikes: every synapse multiplies and adds in every step. That is a network of equal
synapses, not of equal quality.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pragnosia.errors import DataError
from pragnosia.inference.companion import Companion
from pragnosia.measure.energy import EnergyModel, energy_model
from pragnosia.measure.spiking import PRECISION, spiking_cost
from pragnosia.spiking.int8 import weights_of
from pragnosia.spiking.neurogen import NeuroGenForCausalLM
from pragnosia.spiking.running import Activity

ROWS = 16
"""Parts of a text that are read side by side."""
BEFORE = 256
"""Tokens that a part hears before those it is scored on, where the text has them."""


@dataclass(frozen=True, kw_only=True)
class TokenCost:
    """Of one token of one text, on average."""

    spikes_per_token: float
    neuron_updates_per_token: int
    synaptic_operations_per_token: float
    operations_per_token: float
    bytes_per_token: float
    joules_per_token: float
    dense_operations_per_token: float
    dense_joules_per_token: float


def token_cost(
    mind: NeuroGenForCausalLM, fired: Float[Tensor, " N"], tokens: int, model: EnergyModel | None = None
) -> TokenCost:
    """From the spikes of each neuron in so many tokens."""
    model, brain, steps = model or energy_model(), mind.brain, int(mind.config.steps_per_token)
    delivered = []
    for one in brain.projections:
        begin = brain.first[one.config.source]
        fan_out = (one.synapses.starts[1:] - one.synapses.starts[:-1]).double().cpu()
        delivered.append(float(fired[begin : begin + len(fan_out)].double() @ fan_out))
    moments = max(tokens, 1) * steps
    activity = Activity(
        counts=torch.zeros(1, moments, 0, dtype=torch.int32), delivered=torch.tensor([delivered]), tally={}
    )
    step = spiking_cost(brain, activity, model)
    weights = [weight for part in (mind.read, mind.enter) for weight in weights_of(part)]
    # of the table of codes a row is read for each line, of everything else all
    codes, lines = mind.enter.codes, mind.enter.lines if mind.enter.spread is not None else 1
    left_out = codes.numel() - lines * codes.shape[1]
    ends = 2 * (sum(weight.numel() for weight in weights) - left_out + mind.read.features)
    end_bytes = sum(weight.nbytes for weight in weights) - left_out * codes.element_size() + 8 * mind.read.features
    num_bytes = steps * step.num_bytes + end_bytes
    operations = steps * step.operations + ends
    dense_operations = steps * step.dense_operations + ends
    dense_bytes = steps * step.dense_bytes + end_bytes
    return TokenCost(
        spikes_per_token=float(fired.sum()) / max(tokens, 1),
        neuron_updates_per_token=steps * brain.num_neurons,
        synaptic_operations_per_token=steps * step.synaptic_operations,
        operations_per_token=operations,
        bytes_per_token=num_bytes,
        joules_per_token=model.estimate(operations, num_bytes, PRECISION).joules,
        dense_operations_per_token=dense_operations,
        dense_joules_per_token=model.estimate(dense_operations, dense_bytes, PRECISION).joules,
    )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """How well texts were predicted."""

    nats: float
    bytes: int
    tokens: int
    """Scored: all but the first of each document, which stands for its beginning."""
    hits: int
    """Next tokens that were held likeliest."""
    fired: Float[Tensor, " N"]
    read: int
    """Tokens that passed, those heard twice included."""
    seconds: float

    @property
    def bits_per_byte(self) -> float:
        """Of the text."""
        return self.nats / math.log(2) / max(self.bytes, 1)


def predict(
    mind: NeuroGenForCausalLM,
    documents: Iterable[tuple[Int[Tensor, " T"], int]],
    rows: int = ROWS,
    companion: Companion | None = None,
) -> Prediction:
    """Score (ids, bytes of the text) of documents, each in parts side by side; with a companion from end to end.

    Raises DataError where there is none.
    """
    tally, num_bytes = _Tally(mind, companion), 0
    rows = rows if companion is None else 1
    began = time.perf_counter()
    for ids, size in documents:
        if companion is not None:
            companion.cut(0)
        scored = len(ids) - 1
        for group in _groups(scored, max(BEFORE, -(-scored // rows))) if scored > 0 else ():
            tally.score(ids, group)
        num_bytes += size
    if not tally.tokens:
        raise DataError("there is no text to score: every document has less than two tokens")
    return Prediction(
        nats=tally.nats,
        bytes=num_bytes,
        tokens=tally.tokens,
        hits=tally.hits,
        fired=tally.fired,
        read=tally.read,
        seconds=time.perf_counter() - began,
    )


class _Tally:
    """What has been scored so far."""

    def __init__(self, mind: NeuroGenForCausalLM, companion: Companion | None = None) -> None:
        self.companion = companion
        self.mind, self.nats, self.tokens, self.hits, self.read = mind, 0.0, 0, 0, 0
        self.fired = torch.zeros(mind.brain.num_neurons, dtype=torch.float64)

    @torch.no_grad()
    def score(self, ids: Int[Tensor, " T"], group: list[tuple[int, int]]) -> None:
        """Parts of a text, each a row that begins with what stands before it."""
        starts = [max(0, begin - BEFORE) for begin, _ in group]
        length = max(end - start for start, (_, end) in zip(starts, group, strict=True))
        rows = F.pad(ids, (0, length)).unfold(0, length, 1)[torch.tensor(starts)].to(self.mind.device)
        state = self.mind.begin(len(group))
        for at in range(0, length, BEFORE):
            heard = self.mind.hear(rows[:, at : at + BEFORE], state)
            said, state = self.mind.say(heard)
            self.fired += heard.each
            self.read += rows[:, at : at + BEFORE].numel()
            chances = said.log_softmax(-1)
            for row, (start, (begin, end)) in enumerate(zip(starts, group, strict=True)):
                low, high = max(at, begin - start), min(at + len(chances), end - start)
                if low < high:
                    self._add(chances[low - at : high - at, row], ids[start + low : start + high + 1])

    def _add(self, chances: Float[Tensor, "t V"], ids: Int[Tensor, " t+1"]) -> None:
        after = ids[1:].to(chances.device)
        if self.companion is not None:
            self.nats -= float(self.companion.score(ids.tolist(), chances, chances).sum())
        else:
            self.nats -= float(chances.gather(-1, after[:, None]).double().sum())
        self.hits += int((chances.argmax(-1) == after).sum())
        self.tokens += len(after)


def _groups(scored: int, each: int) -> list[list[tuple[int, int]]]:
    """Parts of equal length in one group, what is left at the end alone."""
    parts = [(begin, min(begin + each, scored)) for begin in range(0, scored, each)]
    whole = [part for part in parts if part[1] - part[0] == each]
    rest = [part for part in parts if part[1] - part[0] < each]
    return [group for group in (whole, rest) if group]
