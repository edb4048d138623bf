"""What exits say of a text read at once: their likeliest words, how sure they are, and who would leave where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

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
