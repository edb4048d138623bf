"""Grouped-query attention with rotary positions, over torch's scaled-dot-product (flash) kernels.

    y = softmax(q k^T / sqrt(K) + mask) v      q = rotate(norm(W_q x)), k = rotate(norm(W_k x)), v = W_v x

Vaswani et al. 2017 (arXiv 1706.03762); grouped heads Ainslie et al. 2023 (arXiv 2305.13245); rotary positions Su et
al. 2021 (arXiv 2104.09864); query-key norm Henry et al. 2020 (arXiv 2010.04245).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pragnosia.model.bank import Table
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.fleeting import Fading
from pragnosia.model.gates import Passing
from pragnosia.model.linear import Linear
from pragnosia.model.norm import RMSNorm
from pragnosia.model.setting import WHOLE, Setting
from pragnosia.model.state import Borrowed, KeysValues, KeyValues

Rotation = tuple[Float[Tensor, "B 1 T K"], Float[Tensor, "B 1 T K"]]


@dataclass(frozen=True)
class Moment:
    """What every layer shares in one step: where the tokens stand, what they may see, how much may wake."""

    rotation: Rotation
    masks: Mapping[str, Tensor | None]
    """By layer type: bool, broadcastable to (B, H, T, S); None where causality alone decides."""
    setting: Setting = WHOLE
    """How much of what is there wakes."""
    table: Table | None = None
    """Long-term memory, of which all layers that have such read."""
    passing: Passing | None = None
    """The tokens that are to be mixed; the others are only remembered. None: all."""
    seen: int | Tensor = 0
    """Tokens before these, padding among them."""
    present: Tensor | None = None
    """The mask that was given: (B, S), False for what is no token, or (B, 1, T, S); None: rows are one text each."""


class RotaryPositions(nn.Module):
    """Angles of the rotary embedding for given positions, with transformers' scalings (llama3, yarn, longrope, …)."""

    inv_freq: Tensor

    def __init__(self, config: PragnosiaConfig) -> None:
        super().__init__()
        self.config = config
        self.kind: str = config.rope_parameters["rope_type"]  # type: ignore[index]
        # These two stretch with the sequence; the others are fixed once.
        self.stretches = self.kind in ("dynamic", "longrope")
        with torch.device("cpu"):  # arithmetic on the device `meta` would import torch's tracer, seconds of it
            frequencies, self.scaling = self.frequencies(None)
        self.register_buffer("inv_freq", frequencies.to(torch.get_default_device()), persistent=False)

    def frequencies(self, length: int | None) -> tuple[Float[Tensor, " K/2"], float]:
        """Radians per token of each pair, and the factor on cos and sin, for a sequence of `length` tokens."""
        if self.kind == "default":
            width = self.config.head_dim
            theta = float(self.config.rope_parameters["rope_theta"])  # type: ignore[index]
            return theta ** -(torch.arange(0, width, 2, dtype=torch.float32) / width), 1.0
        frequencies, scaling = ROPE_INIT_FUNCTIONS[self.kind](self.config, None, seq_len=length)
        return frequencies, float(scaling)

    def forward(self, positions: Int[Tensor, "B T"], dtype: torch.dtype) -> Rotation:
        """cos and signed sin; `rotate` needs no negation."""
        frequencies, scaling = self.inv_freq, self.scaling
        if self.stretches:
            stretched, scaling = self.frequencies(int(positions.max()) + 1)
            frequencies = stretched.to(positions.device)
        angles = positions[:, None, :, None].float() * frequencies.float()  # (B, 1, T, K/2)
        cos, sin = angles.cos() * scaling, angles.sin() * scaling
        return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rotate(x: Float[Tensor, "B H T K"], rotation: Rotation) -> Float[Tensor, "B H T K"]:
    """Turn each pair (i, i + K/2) of x by its angle."""
    cos, signed_sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)


class Attention(nn.Module):
    """Mixer: each token gathers from the tokens before it."""

    lets_pass = True
    """It heeds `moment.passing`, and answers (1, N, D) then."""

    def __init__(self, config: PragnosiaConfig, layer: int) -> None:
        super().__init__()
        organ, width = config.attention, config.hidden_size
        assert config.layer_types is not None
        self.layer_type = config.layer_types[layer]
        self.window = organ.sliding_window if self.layer_type == "sliding_attention" else None
        self.head_dim, self.clip = organ.head_dim, organ.clip_qkv
        self.groups = organ.num_heads // organ.num_key_value_heads
        query_width, key_width = organ.num_heads * organ.head_dim, organ.num_key_value_heads * organ.head_dim
        self.q_proj = Linear(width, query_width, bias=organ.bias)
        self.k_proj = Linear(width, key_width, bias=organ.bias)
        self.v_proj: nn.Module = Linear(width, key_width, bias=organ.bias)
        self.o_proj: nn.Module = Linear(query_width, width, bias=organ.output_bias, writes_to_stream=True)
        self.norm_heads = organ.qk_norm == "head"
        normed = {"head": (organ.head_dim, organ.head_dim), "full": (query_width, key_width)}.get(organ.qk_norm)
        self.q_norm: nn.Module = RMSNorm(normed[0], eps=config.rms_norm_eps) if normed else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(normed[1], eps=config.rms_norm_eps) if normed else nn.Identity()
        self.sinks = nn.Parameter(torch.zeros(organ.num_heads)) if organ.sinks else None
        fleeting = config.fleeting
        fades = fleeting is not None and (fleeting.layers is None or layer in fleeting.layers)
        self.fading = Fading(fleeting.intact, fleeting.power) if fades else None

    def forward(
        self, x: Float[Tensor, "B T D"], memory: KeyValues | Borrowed | None, moment: Moment
    ) -> tuple[Float[Tensor, "B T D"], KeyValues | Borrowed | None]:
        """Mix tokens; the memory returned includes these."""
        key = rotate(self._heads(self.k_proj(x), self.k_norm), moment.rotation)
        value = self._heads(self.v_proj(x))
        keys_values = (key, value)
        if memory is not None:
            keys_values, memory = memory.extend(key, value)
        if moment.passing is not None:
            return self._mix_some(x, keys_values, moment, moment.passing), memory
        query = rotate(self._heads(self.q_proj(x), self.q_norm), moment.rotation)
        mask = moment.masks[self.layer_type]
        if self.fading is not None:
            here = torch.arange(x.shape[1], device=x.device)
            mask = self._faded(keys_values, mask, here, moment.seen, x.shape[1])
        mixed = self._attend(query, keys_values, mask)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), memory

    def _mix_some(
        self, x: Float[Tensor, "B T D"], keys_values: KeysValues, moment: Moment, passing: Passing
    ) -> Float[Tensor, "1 N D"]:
        """For the tokens that pass alone: queries, attention and output of no other."""
        tokens = x.flatten(0, 1).index_select(0, passing.tokens)[None]
        if not len(passing.tokens):
            return tokens
        cos, sin = (passing.of_positions(part) for part in moment.rotation)
        query = rotate(self._heads(self.q_proj(tokens), self.q_norm), (cos, sin))  # (1, H, N, K)
        rows = query[0].transpose(0, 1)[passing.slots].transpose(1, 2)  # (B, H, P, K)
        visible = passing.visible(moment.masks[self.layer_type], x.shape[1], keys_values[0].shape[2])
        if self.fading is not None:
            visible = self._faded(keys_values, visible, passing.places, moment.seen, x.shape[1])
        mixed = self._attend(rows, keys_values, visible).transpose(1, 2)[passing.filled]  # (N, H, K)
        y: Tensor = self.o_proj(mixed.flatten(1))[None]
        return y

    def fresh_memory(self, batch: int, room: int, like: Tensor) -> KeyValues:
        """An empty memory with room for `room` tokens, of `like`'s dtype and device."""
        heads = self.k_proj.out_features // self.head_dim
        return KeyValues.empty((batch, heads, room, self.head_dim), like)

    def _heads(self, projected: Float[Tensor, "B T HK"], norm: nn.Module | None = None) -> Float[Tensor, "B H T K"]:
        """Queries, keys or values of each head."""
        if norm is not None and not self.norm_heads:
            projected = norm(projected)
        if self.clip is not None:
            projected = projected.clamp(-self.clip, self.clip)
        heads: Tensor = projected.unflatten(-1, (-1, self.head_dim))
        if norm is not None and self.norm_heads:
            heads = norm(heads)
        return heads.transpose(1, 2)

    def _faded(
        self, keys_values: KeysValues, mask: Tensor | None, places: Tensor, seen: int | Tensor, length: int
    ) -> Float[Tensor, "*B T S"]:
        """What is added to scores, where older keys fade; a window shows one new token as much as it shows many."""
        assert self.fading is not None
        if mask is None and self.window is not None and length == 1:
            total = keys_values[0].shape[2]
            mask = torch.arange(total, device=places.device) >= total - self.window
        return self.fading.mask(mask, places, keys_values[0], seen, length)

    def _attend(self, query: Float[Tensor, "B H T K"], keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        key, value = keys_values
        length, seen = query.shape[2], key.shape[2]
        if self.window is not None and length == 1 and mask is None and seen > self.window:
            key, value = key[:, :, -self.window :], value[:, :, -self.window :]
        if self.sinks is not None:
            return self._attend_with_sinks(query, key, value, mask)
        causal = mask is None and length > 1
        # One query per head: the groups' queries are rows of one small attention, so keys are read once per group.
        if length == 1 and self.groups > 1 and mask is None:
            rows = query.unflatten(1, (-1, self.groups)).squeeze(3)  # (B, key-value heads, groups, K)
            return F.scaled_dot_product_attention(rows, key, value).flatten(1, 2).unsqueeze(2)
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, enable_gqa=self.groups > 1)

    def _attend_with_sinks(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attention with one more key per head, of fixed score and no value (gpt-oss; Xiao et al. arXiv 2309.17453)."""
        assert self.sinks is not None
        (batch, heads, length, _), seen = query.shape, key.shape[2]
        visible = query.new_zeros(length, seen)
        if mask is None and length > 1:
            mask = torch.ones(length, seen, dtype=torch.bool, device=query.device).tril()
        if mask is not None:
            visible = visible.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else mask
        sink = self.sinks.to(query.dtype).view(1, heads, 1, 1).expand(batch, heads, length, 1)
        scores = torch.cat((visible.expand(batch, heads, length, seen), sink), -1)
        nowhere = key.new_zeros(batch, key.shape[1], 1, key.shape[3])
        key, value = torch.cat((key, nowhere), 2), torch.cat((value, nowhere), 2)
        return F.scaled_dot_product_attention(query, key, value, scores, enable_gqa=self.groups > 1)
