"""Dendritic attention: a head has several dendrites, and for each token only the most driven of them speak.

    v_t^h = sum over the A most driven j of  2 sigmoid(d_tj) V_hj x_t          d_t = G x_t           hearing
    y_t   = sum over h, the A most driven j  2 sigmoid(e_tj) O_hj m_t^h        e_t = E m_t           speaking

m_t^h is what head h gathered for token t, by attention over the v_s^h of the tokens it sees; queries and keys are those
of plain attention. A dendrite is a pair of matrices, V (K, D) and O (D, K); there are J a head. What a head remembers
of a token is one value of width K, however many dendrites it has: the cache is that of plain attention. The weights of
dendrites that are silent are not read.

Experts for values and outputs: SwitchHead, Csordas et al. 2023, arXiv 2312.07987. Gates that follow the context:
active dendrites, Iyer et al. 2022, arXiv 2201.00042; here the context is the token's own and what its heads gathered.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pragnosia.kernels.slots import Slots, sort_slots
from pragnosia.model.attention import Attention, Moment
from pragnosia.model.configuration import DendritesConfig, PragnosiaConfig
from pragnosia.model.linear import Linear
from pragnosia.model.state import Borrowed, KeyValues


class DendriticAttention(nn.Module):
    """Mixer: attention whose values and outputs pass through the dendrites that are driven most."""

    lets_pass = True

    def __init__(self, config: PragnosiaConfig, layer: int) -> None:
        super().__init__()
        heads, organ = config.attention, config.dendrites
        assert organ is not None
        self.attention = Attention(config, layer)
        self.attention.v_proj = Hearing(config.hidden_size, heads.num_key_value_heads, heads.head_dim, organ)
        self.attention.o_proj = Speaking(config.hidden_size, heads.num_heads, heads.head_dim, organ)

    def forward(
        self, x: Float[Tensor, "B T D"], memory: KeyValues | Borrowed | None, moment: Moment
    ) -> tuple[Float[Tensor, "B T D"], KeyValues | Borrowed | None]:
        """Mix tokens; the memory returned includes these."""
        mixed: tuple[Tensor, KeyValues | Borrowed | None] = self.attention(x, memory, moment)
        return mixed

    def fresh_memory(self, batch: int, room: int, like: Tensor) -> KeyValues:
        """As plain attention's."""
        return self.attention.fresh_memory(batch, room, like)


class Dendrites(nn.Module):
    """H heads of J dendrites, one matrix each; the A most driven of every head are awake."""

    def __init__(self, driven_by: int, heads: int, rows: int, columns: int, organ: DendritesConfig) -> None:
        super().__init__()
        self.heads, self.each, self.num_awake = heads, organ.num_dendrites, organ.num_awake
        self.gate = Linear(driven_by, heads * organ.num_dendrites, bias=False)
        self.weight = nn.Parameter(torch.empty(heads * organ.num_dendrites, rows, columns))

    def driven(self, x: Float[Tensor, "T D"]) -> tuple[Int[Tensor, "T HA"], Float[Tensor, "T HA"]]:
        """Who is awake for each token, head by head, and how loudly."""
        drive = self.gate(x).float().view(-1, self.heads, self.each)
        most, which = drive.topk(self.num_awake, dim=-1)
        first = torch.arange(self.heads, device=x.device)[:, None] * self.each
        return (which + first).flatten(1), (2 * most.sigmoid()).flatten(1).to(x.dtype)

    def products(self, rows: Float[Tensor, "N I"], slots: Slots) -> Float[Tensor, "N O"]:
        """Each row by its own dendrite's matrix; rows lie as the slots do, and silent matrices stay unread."""
        weights = self.weight.unbind(0)  # whose gradient is stacked once, where indexing would fill it for each
        return torch.cat([rows[start:stop] @ weights[unit].t() for unit, start, stop in slots.groups])


class Hearing(Dendrites):
    """What a token says to those that will look at it: its values."""

    def __init__(self, width: int, heads: int, head_dim: int, organ: DendritesConfig) -> None:
        super().__init__(width, heads, head_dim, width, organ)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B HK"]:
        """Values of all heads, side by side."""
        tokens = x.flatten(0, -2)
        units, loudness = self.driven(tokens)
        slots = sort_slots(units, len(self.weight))
        heard = self.products(tokens.index_select(0, slots.tokens), slots)
        heard = heard * loudness.flatten().index_select(0, slots.order)[:, None]
        back = slots.order.argsort()  # nobody is asleep in a slot, so the order is a permutation
        values = heard.index_select(0, back).view(len(tokens), self.heads, self.num_awake, -1).sum(2)
        return values.view(*x.shape[:-1], -1)


class Speaking(Dendrites):
    """What the heads gathered, said to the stream."""

    writes_to_stream = True

    def __init__(self, width: int, heads: int, head_dim: int, organ: DendritesConfig) -> None:
        super().__init__(heads * head_dim, heads, width, head_dim, organ)

    def forward(self, gathered: Float[Tensor, "*B HK"]) -> Float[Tensor, "*B D"]:
        """The heads' sum."""
        tokens = gathered.flatten(0, -2)
        units, loudness = self.driven(tokens)
        slots = sort_slots(units, len(self.weight))
        by_head = tokens.reshape(len(tokens) * self.heads, -1)
        rows = by_head.index_select(0, slots.order.div(self.num_awake, rounding_mode="floor"))
        rows = rows * loudness.flatten().index_select(0, slots.order)[:, None]
        return slots.sum_over_slots(self.products(rows, slots)).view(*gathered.shape[:-1], -1)
