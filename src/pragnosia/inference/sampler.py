"""Sampling: from logits to the next token. The warpers are transformers' own, in transformers' order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pragnosia.errors import PromptError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = field(default=())
    """Texts that end the answer; they are not part of it."""

    def __post_init__(self) -> None:
        given: Any = self.stop
        stop = (given,) if isinstance(given, str) else tuple(given)
        object.__setattr__(self, "stop", stop)
        _require(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 (greedy) or more, and finite")
        _require(_whole(self.top_k, 1, math.inf), "top_k", self.top_k, "1 or more, and whole")
        _require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        _require(self.min_p is None or 0 <= self.min_p <= 1, "min_p", self.min_p, "in [0, 1]")
        penalty = self.repetition_penalty
        _require(0 < penalty < math.inf, "repetition_penalty", penalty, "greater than 0, and finite")
        _require(_whole(self.seed, -(2**63), 2**64 - 1), "seed", self.seed, "a whole number of at most 64 bits")
        _require(all(stop), "stop", stop, "made of texts that are not empty")


def _whole(value: Any, least: float, most: float) -> bool:
    return value is None or (isinstance(value, int) and least <= value <= most)


def _require(condition: bool, name: str, got: object, expected: str) -> None:
    if not condition:
        raise PromptError(f"{name} is {got}; it must be {expected}")


class Sampler:
    """Chooses tokens one by one, with its own seeded source of chance."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.greedy = sampling.temperature == 0
        self.generator = torch.Generator(device)
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)
        self.warpers = LogitsProcessorList()
        if sampling.repetition_penalty != 1.0:
            self.warpers.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if self.greedy:
            return
        if sampling.temperature != 1.0:
            self.warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k is not None:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p is not None and sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            self.warpers.append(MinPLogitsWarper(sampling.min_p))

    @property
    def is_argmax(self) -> bool:
        """Whether the likeliest token is always chosen, whatever was seen."""
        return self.greedy and not self.warpers

    def __call__(self, seen: Int[Tensor, "1 S"], logits: Float[Tensor, "1 V"]) -> Int[Tensor, "1 1"]:
        """The next token, after the tokens seen so far."""
        if self.warpers:
            logits = self.warpers(seen, logits.float())  # type: ignore[arg-type]
        if self.greedy:
            return logits.argmax(-1, keepdim=True)
        return torch.multinomial(logits.float().softmax(-1), 1, generator=self.generator)
