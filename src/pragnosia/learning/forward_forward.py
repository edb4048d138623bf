"""Forward-forward: every layer learns to be loud about text and quiet about what is none; no layer hears of another.

    d_l[t]  = layer_l(stop(x_{l-1}))[t] - x_{l-1}[t]                       what a layer adds to the stream
    g_l[t]  = sharp (mean_d( d_l[t]^2 ) / threshold - 1)                   goodness, as log odds that token t is real
    L_l     = mean_t softplus(-g_l[t]) over text  +  mean_t softplus(g_l[t]) over false tokens

Hinton 2022, arXiv 2212.13345, eq. 1 and section 2; that a layer must not see how loud the one before was is what the
norms at its entrance are for. A false row is the row with every fourth token, from a place that its own tokens decide
on, exchanged for the one half a row away: each is judged behind a past that is mostly true, and what follows it is not
judged. So negatives are as frequent as words are, need no model to make them, and are the same in every run.

The last stream is the sum of the embedding and of what all layers said. Readout, last norm and embedding learn their
exact gradient on it, past the layers and not through them (the softmax of Hinton's section 3.2): what layers say is
heard as it is. The threshold is low because a loud layer drowns the embedding in that sum.

Memory beyond weights: the activations of one layer, whatever the depth; true and false rows take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pragnosia.errors import ConfigError
from pragnosia.learning.backprop import Backprop
from pragnosia.learning.cortex import Passed, asleep, cortex_of, learners, precision, walk
from pragnosia.learning.rule import Lesson, Named
from pragnosia.model.exits import ExitLesson
from pragnosia.model.output_cortex import next_token_loss

EVERY = 4
"""One token of so many is exchanged in a false row."""
FEWEST = 2 * EVERY
"""Tokens a row must have to be made false."""


@final
class ForwardForward:
    """Layers that tell text from what is none."""

    def __init__(self, *, autocast: torch.dtype | None = None, sharp: float = 4.0, threshold: float = 0.1) -> None:
        for name, value in (("sharp", sharp), ("threshold", threshold)):
            if not value > 0:
                raise ConfigError(f"learning.{name} is {value}; it must be greater than 0")
        self.autocast, self.sharp, self.threshold = autocast, sharp, threshold

    def changes(self, model: nn.Module) -> Iterable[Named]:
        """Every parameter that asks for a gradient."""
        return learners(model)

    def learn(
        self, model: nn.Module, tokens: Int[Tensor, "B T"], share: float, exits: ExitLesson | None = None
    ) -> Lesson:
        """Two forward passes side by side; a layer has its wishes before the next one hears anything."""
        cortex, routings = cortex_of(model, "forward_forward", exits), []
        false, judged = falsified(tokens)
        embedded = cortex.model.embed_tokens(tokens)
        stream = embedded.detach()
        with precision(self.autocast, tokens.device):
            text, none = (walk(cortex, each, to_embedding=False) for each in (tokens, false))
            for real in text:
                (F.softplus(-self.goodness(real)).mean() * share).backward()
                routings.append(asleep(real.routing))
                stream = real.left.detach()
                # over all that were chosen, so that halves of a batch add up to the whole
                quiet = F.softplus(self.goodness(next(none))) * judged
                (quiet.mean() * EVERY * share).backward()
            stream = stream + (embedded - embedded.detach())
            loss = next_token_loss(cortex.model.norm(stream), cortex.lm_head.weight, tokens)
            (loss * share).backward()
        return Lesson(loss.detach(), tuple(routings))

    def goodness(self, passed: Passed) -> Float[Tensor, "B T"]:
        """How loud a layer was about each token, as log odds."""
        loudness: Tensor = (passed.left - passed.entered).float().square().mean(-1)
        return self.sharp * (loudness / self.threshold - 1)

    def settle(self, model: nn.Module, lessons: Sequence[Lesson]) -> None:
        """As back-propagation does: the routers are told who woke for the text."""
        Backprop().settle(model, lessons)


def falsified(tokens: Int[Tensor, "B T"]) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Rows with false tokens in them, and where they are. Raises ConfigError for rows that are too short."""
    length = tokens.shape[1]
    if length < FEWEST:
        raise ConfigError(
            f"forward_forward makes false rows of true ones, which takes {FEWEST} tokens, these have {length}; "
            f"raise batch.sequence_length"
        )
    places = torch.arange(length, device=tokens.device)
    chosen = (places + tokens.sum(1, keepdim=True)) % EVERY == 0
    false = torch.where(chosen, tokens.roll(length // 2, 1), tokens)
    return false, false != tokens
