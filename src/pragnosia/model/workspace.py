"""Global workspace: a layer's modules compete to be heard by all tokens that follow.

    u_mt = norm(what module m said for token t)          s_mt = w_m . u_mt          m: mixer, feed-forward, recall
    x_t += W_o sum over slots of  a(W_q norm(x_t), k, s) v                          k, v = W_k u, W_v u

Of all that the modules said in a segment and what already stands, the few strongest stand from its end on, and every
token of the next segments reads them, behind the layer's feed-forward (competition.py). So a slot holds one module's
word for one token, and who won, how clearly, what was read and what it changed can be told (workspace_state.py). W_o
begins at zero.

Goyal et al. 2021, Coordination Among Neural Modules Through a Shared Global Workspace, arXiv 2103.01197.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pragnosia.model.attention import Moment
from pragnosia.model.competition import Slots, Standing
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.norm import RMSNorm
from pragnosia.model.slot_organs import writers_of
from pragnosia.model.working_memory import SlotReader


@dataclass(frozen=True)
class Seen:
    """What went on in a workspace in one call."""

    standing: Standing
    weights: Float[Tensor, "R G S H M"]
    """How strongly each token looked at each slot; what is missing to 1 looked at nothing."""
    before: Slots | None
    after: Slots


@final
class Workspace(nn.Module):
    """A few slots that a layer's modules write to and all tokens of later segments read."""

    def __init__(self, config: PragnosiaConfig, layer: int) -> None:
        super().__init__()
        assert config.workspace is not None
        self.modules_heard = writers_of(config, layer)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.reader_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.slots = SlotReader(config, config.workspace, writers=len(self.modules_heard))

    def forward(
        self, x: Float[Tensor, "B T D"], said: Sequence[Float[Tensor, "B T D"]], slots: Slots | None, moment: Moment
    ) -> tuple[Float[Tensor, "B T D"], Slots]:
        """What the tokens hear from the workspace, and the slots behind them."""
        heard, seen = self.watch(x, said, slots, moment)
        return heard, seen.after

    def watch(
        self, x: Float[Tensor, "B T D"], said: Sequence[Float[Tensor, "B T D"]], slots: Slots | None, moment: Moment
    ) -> tuple[Float[Tensor, "B T D"], Seen]:
        """The same, with all that went on."""
        standing, after, segments = self.slots.offer(self.norm(torch.stack(tuple(said), 2)), slots, moment)
        heard, weights = self.slots.recall(self.reader_norm(x), standing, segments)
        return heard, Seen(standing, weights, slots, after)
