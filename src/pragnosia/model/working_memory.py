"""Working memory: a few slots that tokens compete for, read by every token of the segments after.

    s_i = w . norm(x_i)                                         how strongly token i asks for a slot
    x_t += W_o sum over slots of  a(q_t, k_i, s_i) v_i          q, k, v = W_q, W_k, W_v norm(x)

At the end of a segment its tokens and the slots that stand compete by strength, and the M strongest stand from then on
(competition.py); the strength of what stands fades. Tokens read the slots as they were when their segment began, so
that nothing depends on how a text is cut into calls. What a token leaves is a key and a value per head, as in
attention, but of the whole text only M + S of them are kept: slots reach further back than a window, at a cost that
does not grow. W_o begins at zero: a model that is given working memory says what it said before.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pragnosia.model.attention import Moment
from pragnosia.model.competition import Slots, Standing, compete, read
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.linear import Linear
from pragnosia.model.norm import RMSNorm
from pragnosia.model.segments import Segments
from pragnosia.model.slot_organs import SlotsConfig
from pragnosia.model.thalamus import own_precision


class Salience(nn.Module):
    """How strongly each writer's tokens ask for a slot; one row of weights per writer."""

    def __init__(self, width: int, writers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(writers, width))

    def forward(self, normed: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N"]:
        """In float32: a rounded strength gives the wrong token a slot."""
        with own_precision(normed):
            return torch.einsum("btnd,nd->btn", normed.float(), self.weight.float())


class SlotReader(nn.Module):
    """What organs of slots have in common: keys and values for the slots, queries to them, and a way back."""

    def __init__(self, config: PragnosiaConfig, organ: SlotsConfig, writers: int) -> None:
        super().__init__()
        self.organ, self.writers = organ, writers
        width, inner = config.hidden_size, organ.num_heads * organ.head_dim
        self.salience = Salience(width, writers)
        self.q_proj = Linear(width, inner, bias=False)
        self.k_proj = Linear(width, inner, bias=False)
        self.v_proj = Linear(width, inner, bias=False)
        self.o_proj = Linear(inner, width, bias=False, writes_to_stream=True)
        self.o_proj.starts_silent = True
        self.sinks = nn.Parameter(torch.zeros(organ.num_heads))

    def offer(
        self, said: Float[Tensor, "B T N D"], slots: Slots | None, moment: Moment
    ) -> tuple[Standing, Slots, Segments]:
        """Let what was said compete for the slots; what each segment finds, and what is remembered."""
        segments = Segments.of(moment, said.shape[1], self.organ.segment)
        entries = torch.cat((self.k_proj(said), self.v_proj(said)), -1)
        standing, after = compete(
            slots, entries, self.salience(said), segments, self.organ.num_slots, self.organ.fading
        )
        return standing, after, segments

    def recall(
        self, x: Float[Tensor, "B T D"], standing: Standing, segments: Segments
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "R G S H M"]]:
        """What tokens find in the slots, for the stream; and how strongly each looked at each slot."""
        found, weights = read(self.q_proj(x), standing, self.sinks, segments)
        return self.o_proj(found), weights

    def fresh_slots(self, batch: int, like: Tensor) -> Slots:
        """Nothing remembered yet, of `like`'s dtype and device."""
        organ = self.organ
        return Slots.empty(batch, organ.num_slots, organ.segment * self.writers, organ.entry_width, like)


@final
class WorkingMemory(nn.Module):
    """Slots that hold tokens."""

    def __init__(self, config: PragnosiaConfig) -> None:
        super().__init__()
        assert config.working_memory is not None
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.slots = SlotReader(config, config.working_memory, writers=1)

    def forward(
        self, x: Float[Tensor, "B T D"], slots: Slots | None, moment: Moment
    ) -> tuple[Float[Tensor, "B T D"], Slots]:
        """What the tokens recall, and the slots behind them."""
        normed = self.norm(x)
        standing, after, segments = self.slots.offer(normed[:, :, None], slots, moment)
        return self.slots.recall(normed, standing, segments)[0], after
