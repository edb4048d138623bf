"""Validation: what the model makes of text it never learned from.

bits per byte = (mean loss [nats] / ln 2) / (bytes per token of the held-out text)
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from pragnosia.data import Corpus, Place, validation_batches
from pragnosia.model.thalamus import sparse, unit_load
from pragnosia.training.configuration import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class HeldOut:
    """The result."""

    loss: float
    bits_per_byte: float
    load: list[list[float]]
    """Of each sparse layer, the share of its work that each unit did."""


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Nats per token to bits per byte."""
    return loss / math.log(2) / bytes_per_token


@final
class Validation:
    """Always the same held-out tokens, spread evenly over the text."""

    def __init__(self, corpus: Corpus, config: TrainConfig, autocast: torch.dtype | None) -> None:
        batch = config.batch
        self.batch_size, self.sequence_length = batch.batch_size, batch.sequence_length
        self.corpus, self.autocast = corpus, autocast
        tokens = sum(max(0, part.validation.tokens - 1) for part in corpus.parts)
        # Of a long text every n-th batch is read, as if n processes took turns.
        self.stride = max(1, round(tokens / config.logging.validation_tokens))
        self.possible = tokens > 0

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> HeldOut:
        """Loss, bits per byte and load; the model stays in training mode, where it makes no logits."""
        total, targets = 0.0, 0
        loads: list[Tensor] = []
        precision = torch.autocast(model.device.type, dtype=self.autocast) if self.autocast else nullcontext()
        for rows in validation_batches(self.corpus, self.batch_size, self.sequence_length, Place(0, self.stride)):
            tokens = rows.to(model.device)
            with precision:
                output = model(input_ids=tokens, labels=tokens, use_cache=False)
            count = tokens[:, 1:].numel()
            total += float(output.loss) * count
            targets += count
            load = [unit_load(routing) for routing in sparse(output.routings or ())]
            loads = [mine + new for mine, new in zip(loads, load, strict=True)] if loads else load
        loss = total / targets
        shares = [(load / load.sum()).tolist() for load in loads]
        return HeldOut(loss, bits_per_byte(loss, self.corpus.validation_bytes_per_token), shares)
