"""Output cortex: hidden states to logits, and the loss of the next token without ever holding all logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache
from transformers.utils.generic import ModelOutput

from pragnosia import kernels
from pragnosia.model.state import State
from pragnosia.model.thalamus import Routing

IGNORED = -100


@dataclass
class PragnosiaOutput(ModelOutput):
    """What the stack returns."""

    last_hidden_state: Tensor | None = None
    past_key_values: State | Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    routings: tuple[Routing | None, ...] | None = None


@dataclass
class PragnosiaCausalLMOutput(ModelOutput):
    """What the language model returns; `logits` is None in training, where only the loss is wanted."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: State | Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    routings: tuple[Routing | None, ...] | None = None
    exit_loss: Tensor | None = None
    """Of the exits that a lesson names, weighted; a learning rule adds it, `loss` is the end's alone."""


def next_token_loss(
    hidden: Float[Tensor, "B T D"], head: Float[Tensor, "V D"], labels: Int[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy [nats] of each token's successor; labels of -100 do not count."""
    successors = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return kernels.linear_cross_entropy(hidden.flatten(0, 1), head, successors.flatten(), IGNORED)
