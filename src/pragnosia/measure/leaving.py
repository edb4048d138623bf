"""What exits say of a text read at once: their likeliest words, how sure they are, and who would leave where.

Every token is read as if it had been spoken: the layers above one that left find what a decoder would have left there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia.model.setting import Setting
from pragnosia.model.thalamus import ASLEEP, Routing

ROWS = 256  # of logits at once


@torch.inference_mode()
def answers(hidden: Float[Tensor, "N D"], head: nn.Module) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """The likeliest word behind each normed hidden state, and its probability."""
    words, sure = [], []
    for rows in hidden.split(ROWS):
        logits = head(rows).float()
        top, word = logits.max(-1)
        words.append(word)
        sure.append((top - logits.logsumexp(-1)).exp())
    return torch.cat(words), torch.cat(sure)


@dataclass(frozen=True)
class Left:
    """Of a text whose tokens may leave early."""

    hidden: Float[Tensor, "N D"]
    """Normed, where each of the last tokens of each row left."""
    depths: Int[Tensor, " N"]
    """Behind how many layers."""
    routings: tuple[Routing | None, ...]
    """Of all tokens."""


def read_leaving(model: Any, rows: Int[Tensor, "B T"], num_last: int, setting: Setting) -> Left:
    """A text as the setting has it, and of the last `num_last` tokens of each row where they left."""
    if setting.memory == "propagated":
        return _propagated(model, rows, num_last, setting)
    output = model.model(rows, use_cache=False, output_hidden_states=True, setting=setting)
    return Left(*leaving(model, output, num_last, setting.leave), output.routings)


@torch.inference_mode()
def _propagated(model: Any, rows: Int[Tensor, "B T"], num_last: int, setting: Setting) -> Left:
    """Who left stays as it was: the layers above take its key and value from that, and add nothing to it."""
    stack, exits = model.model, dict(setting.leave)
    x: Tensor = stack.embed_tokens(rows)
    moment = stack.moment(x, seen=0, setting=setting)
    here = torch.ones_like(rows, dtype=torch.bool)
    depths, routings = torch.full_like(rows, len(stack.layers)), list[Routing | None]()
    for number, layer in enumerate(stack.layers):
        if number in exits:
            gone = here.clone()
            gone[here] = answers(stack.norm(x[here]), model.lm_head)[1] >= exits[number]
            depths, here = depths.masked_fill(gone, number), here & ~gone
        passed, _, routing = layer(x, None, moment)
        x = torch.where(here[..., None], passed, x)
        if routing is not None:
            routing = routing._replace(units=routing.units.masked_fill(~here.flatten()[:, None], ASLEEP))
        routings.append(routing)
    return Left(stack.norm(x[:, -num_last:]).flatten(0, 1), depths[:, -num_last:].flatten(), tuple(routings))


@torch.inference_mode()
def leaving(
    model: Any, output: Any, num_last: int, leave: Sequence[tuple[int, float]]
) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
    """Of the last `num_last` tokens of each row: the normed hidden states where they leave, and behind which layer.

    All have passed every layer, so what they remember is `exact`. `output` is the stack's, with its hidden states.
    """
    streams = output.hidden_states
    chosen: Tensor = streams[-1][:, -num_last:].flatten(0, 1)
    depths = torch.full((len(chosen),), len(streams) - 1, device=chosen.device)
    for layer, confidence in reversed(leave):  # the first exit that is sure has the last word
        hidden = model.model.norm(streams[layer][:, -num_last:]).flatten(0, 1)
        gone = answers(hidden, model.lm_head)[1] >= confidence
        chosen = torch.where(gone[:, None], hidden, chosen)
        depths = torch.where(gone, layer, depths)
    return chosen, depths
