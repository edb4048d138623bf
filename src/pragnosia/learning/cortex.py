"""What rules that learn layer by layer share: the cortex walked one layer at a time, nothing handed back between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from pragnosia.errors import ConfigError
from pragnosia.learning.rule import Named
from pragnosia.model.cortex import Cortex
from pragnosia.model.exits import ExitLesson
from pragnosia.model.setting import WHOLE
from pragnosia.model.thalamus import Routing


class Passed(NamedTuple):
    """One layer, passed."""

    entered: Float[Tensor, "B T D"]
    """What came in; in front of the first layer the embedding's graph may be behind it, else it is a leaf."""
    left: Float[Tensor, "B T D"]
    routing: Routing | None


def cortex_of(model: nn.Module, rule: str, exits: ExitLesson | None) -> Any:
    """The model as a stack of layers. Raises ConfigError where the rule is not defined for it."""
    if not isinstance(model, Cortex):
        raise ConfigError(f"the rule {rule!r} is defined for the cortex, this is a {type(model).__name__}")
    if exits is not None:
        raise ConfigError(f"the rule {rule!r} trains no exits; leave model.exits out, or train by backprop")
    return model


def walk(model: Any, tokens: Int[Tensor, "B T"], *, to_embedding: bool = True) -> Iterator[Passed]:
    """Layer after layer; the graph of each ends where it begins, the first one's at the embedding if `to_embedding`."""
    stack = model.model
    x = stack.embed_tokens(tokens)
    if not to_embedding:
        x = x.detach()
    moment = stack.moment(x, seen=0, setting=WHOLE)
    for layer in stack.layers:
        left, _, routing = layer(x, None, moment)
        yield Passed(x, left, routing)
        x = left.detach()


def still(module: nn.Module, x: Tensor) -> Tensor:
    """What a module makes of x while its own weights learn nothing."""
    held = {name: weight.detach() for name, weight in module.named_parameters()}
    result: Tensor = functional_call(module, held, (x,))
    return result


def learners(model: nn.Module) -> list[Named]:
    """Every parameter that asks for a gradient."""
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def precision(autocast: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """Mixed precision, where it is wanted."""
    return nullcontext() if autocast is None else torch.autocast(device.type, dtype=autocast)


def asleep(routing: Routing | None) -> Routing | None:
    """A routing without its graph."""
    return None if routing is None else routing.each(torch.Tensor.detach)
