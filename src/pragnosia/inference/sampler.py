"""Sampling: from logits to the next token. The warpers are transformers' own, in transformers' order.

On a GPU all but the repetition penalty, the draw included, is one program (kernels/triton_sampling.py).
"""

from __future__ import annotations

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

from pragnosia.inference.sampling import Sampling
from pragnosia.kernels import triton_sampling

__all__ = ["Sampler", "Sampling"]


class Sampler:
    """Chooses tokens one by one, with its own seeded source of chance."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.greedy = sampling.temperature == 0
        self.options = {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
        }
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
    def reads_text(self) -> bool:
        """Whether the choice depends on what was said before."""
        return any(isinstance(warper, RepetitionPenaltyLogitsProcessor) for warper in self.warpers)

    @property
    def is_argmax(self) -> bool:
        """Whether the likeliest token is always chosen, whatever was seen."""
        return self.greedy and not self.warpers

    def __call__(self, seen: Int[Tensor, "1 S"], logits: Float[Tensor, "1 V"]) -> Int[Tensor, "1 1"]:
        """The next token, after the tokens seen so far."""
        if not self.greedy and triton_sampling.takes(logits):
            if self.reads_text:
                logits = self.warpers[0](seen, logits.float())
            return triton_sampling.draw(logits, self.generator, **self.options)  # type: ignore[arg-type]
        if self.warpers:
            logits = self.warpers(seen, logits.float())  # type: ignore[arg-type]
        if self.greedy:
            return logits.argmax(-1, keepdim=True)
        return torch.multinomial(logits.float().softmax(-1), 1, generator=self.generator)
