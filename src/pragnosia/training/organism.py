"""Organism: what grows together while a run lasts: a model, and whatever runs along its parameters.

change(verb): the loss of the last rows -> the verb -> moments, averages, checkpointing follow -> the loss again
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pragnosia.data import Batches
from pragnosia.errors import ConfigError
from pragnosia.learning import LearningRule
from pragnosia.measure.accounting import Account, account
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex
from pragnosia.plasticity.origin import Change
from pragnosia.training.average import Average
from pragnosia.training.growing import follow
from pragnosia.training.optimisers import Optimisers

TRAINING = 3
"""Passes' worth of operations that learning from a token takes: one forward, two backward."""


@dataclass
class Organism:
    """A model in training."""

    model: Any
    rule: LearningRule
    optimisers: Optimisers
    average: Average | None
    batches: Batches
    precision: torch.dtype | None = None

    def change(self, verb: Callable[[Cortex], Change], rows: Tensor | None) -> float | None:
        """Change the structure, with all that goes along; by how much the loss of `rows` jumped, relative.

        Raises ConfigError where the model cannot change so; then nothing has.
        """
        before = self.loss(rows)
        change = verb(self.model)
        follow(change, self.model, self.rule, self.optimisers, self.average)
        after = self.loss(rows)
        return None if before is None or after is None else (after - before) / before

    @torch.no_grad()
    def loss(self, rows: Tensor | None) -> float | None:
        """Of some rows, as in training; nothing is learned, and no random number is drawn."""
        if rows is None:
            return None
        with torch.autocast(rows.device.type, dtype=self.precision, enabled=self.precision is not None):
            return float(self.model(input_ids=rows, labels=rows, use_cache=False).loss)

    @property
    def parameters(self) -> int:
        """All there are; a table that serves at both ends once."""
        return sum(weight.numel() for weight in self.model.parameters())


def check_cortex(model: Any) -> None:
    """Raise ConfigError for a model whose structure cannot change while it is trained."""
    if not isinstance(model, Cortex):
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise ConfigError(f"stages and plasticity are for the cortex, this model is of kind {kind}; leave them out")


class Costs:
    """Operations of a step, counted once for every shape and length."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.known: dict[tuple[str, int], Account] = {}

    def account(self, config: PragnosiaConfig, length: int) -> Account:
        """Of a model of this shape over rows of so many tokens."""
        key = (config.to_json_string(use_diff=False), length)
        if key not in self.known:
            self.known[key] = account(config, precision="float32", context=length)
        return self.known[key]

    def step(self, config: PragnosiaConfig, length: int) -> int:
        """Operations to learn from one step's tokens."""
        return TRAINING * self.account(config, length).operations_per_token * self.tokens
