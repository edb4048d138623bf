"""LearningRule: what turns a batch of tokens into changed weights.

A rule leaves its wishes in `.grad` of the parameters it declares, as if they were gradients; the training
loop clips them and hands them to the optimiser. What is no wish on a weight (a balance, a threshold, a trace)
the rule changes itself in `settle`, between steps. So every rule, local or global, runs in one loop, and
forward never learns.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.model.exits import ExitLesson
from pragnosia.model.parts import part
from pragnosia.model.thalamus import Routing

RULES = {
    "backprop": "pragnosia.learning.backprop:Backprop",
    "reptile": "pragnosia.learning.meta:Reptile",
    "fomaml": "pragnosia.learning.meta:FirstOrder",
    "maml": "pragnosia.learning.meta:SecondOrder",
    "dfa": "pragnosia.learning.feedback_alignment:FeedbackAlignment",
    "local": "pragnosia.learning.local_loss:LocalLoss",
    "forward_forward": "pragnosia.learning.forward_forward:ForwardForward",
}
"""Name -> class; `module:Class` names one outside the tree. Made by `Class(autocast=dtype or None, **told)`."""
SPIKING_RULES = {
    "surrogate": "pragnosia.learning.spiking:Surrogate",
    "eprop": "pragnosia.learning.spiking:EProp",
    "factorised": "pragnosia.learning.spiking:Factorised",
    "three_factor": "pragnosia.learning.spiking:ThreeFactor",
    "dfa": "pragnosia.learning.spiking:DirectFeedback",
    "stdp": "pragnosia.learning.spiking_synapses:Pairs",
    "triplet": "pragnosia.learning.spiking_synapses:Triplets",
    "hebb": "pragnosia.learning.spiking_synapses:Hebb",
    "oja": "pragnosia.learning.spiking_synapses:Oja",
    "delta": "pragnosia.learning.spiking:Delta",
}
"""The same for a spiking model."""
MINDS = {"cortex": RULES, "spiking model": SPIKING_RULES}

Named = tuple[str, nn.Parameter]


@dataclass(frozen=True)
class Lesson:
    """What one batch taught: its mean loss in nats per predicted token, and who woke for it."""

    loss: Float[Tensor, ""]
    """Detached, and left on its device: reading it waits for the device, so it is the reader's choice."""
    routings: tuple[Routing | None, ...] = ()
    """One per layer, detached; None where a layer is dense."""
    fired: Float[Tensor, ""] | None = None
    """Of a spiking model: spikes of a neuron in a token, on average."""


@runtime_checkable
class LearningRule(Protocol):
    """One way to learn."""

    def changes(self, model: nn.Module) -> Iterable[Named]:
        """The parameters this rule may change, by name; all others stay as they are."""

    def learn(
        self, model: nn.Module, tokens: Int[Tensor, "B T"], share: float, exits: ExitLesson | None = None
    ) -> Lesson:
        """Add `share` of the wishes of this batch to `.grad`; nothing else about the model changes.

        `exits` is given where the model has exits to train.
        """

    def settle(self, model: nn.Module, lessons: Sequence[Lesson]) -> None:
        """After the optimiser's step: change what needs no optimiser."""


def learning_rule(
    name: str,
    *,
    autocast: torch.dtype | None = None,
    told: Mapping[str, Any] | None = None,
    mind: str = "cortex",
) -> LearningRule:
    """The rule called `name` in a mind's table, or `module:Class`, and what it is told of its own.

    Raises ConfigError that says what there is.
    """
    table = MINDS[mind]
    if name not in table and any(name in other for other in MINDS.values()):
        raise ConfigError(f"the rule {name} is not defined for a {mind}; it learns by {', '.join(table)}")
    made = part(table, name)
    known = [key for key in inspect.signature(made).parameters if key != "autocast"]
    for key in told or {}:
        if key not in known:
            if not known:
                raise ConfigError(f"the rule {name} takes nothing of its own, and learning has {key}; leave it out")
            raise ConfigError(unknown_name("key in learning", str(key), known))
    rule: LearningRule = made(autocast=autocast, **(told or {}))
    return rule
