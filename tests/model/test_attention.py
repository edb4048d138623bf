"""Attention against a definition that masks, rotates and divides in the open, and against transformers' rotations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pragnosia.model.attention import Attention, Moment, RotaryPositions, rotate
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.state import causal_mask

MakeConfig = Callable[..., PragnosiaConfig]
Make = Callable[..., PragnosiaForCausalLM]


def turned(x: Tensor, theta: float) -> Tensor:
    """(B, T, H, K) rotated as complex numbers, pair (i, i + K/2) by t theta^(-2i/K)."""
    half = x.shape[-1] // 2
    speed = theta ** -(torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None, None] * speed
    spun = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((spun.real, spun.imag), -1)


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    scaled: Tensor = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    return scaled


def by_definition(attention: Attention, config: Any, x: Tensor) -> Tensor:
    """The layer's answer to a whole text, in float64, one query at a time."""
    organ = config.attention
    weights = {name: tensor.detach().double() for name, tensor in attention.state_dict().items()}
    x, eps = x.double(), config.rms_norm_eps

    def projected(letter: str, heads: int) -> Tensor:
        rows: Tensor = x @ weights[f"{letter}_proj.weight"].T + weights.get(f"{letter}_proj.bias", torch.zeros(()))
        if organ.qk_norm == "full" and letter != "v":
            rows = normed(rows, weights[f"{letter}_norm.weight"], eps)
        if organ.clip_qkv is not None:
            rows = rows.clamp(-organ.clip_qkv, organ.clip_qkv)
        rows = rows.reshape(*x.shape[:2], heads, organ.head_dim)
        if organ.qk_norm == "head" and letter != "v":
            rows = normed(rows, weights[f"{letter}_norm.weight"], eps)
        return rows

    query = turned(projected("q", organ.num_heads), 10000.0)
    key = turned(projected("k", organ.num_key_value_heads), 10000.0)
    value = projected("v", organ.num_key_value_heads)
    mixed = torch.zeros_like(query)
    for head in range(organ.num_heads):
        kept = head // (organ.num_heads // organ.num_key_value_heads)
        for now in range(x.shape[1]):
            first = 0 if attention.window is None else max(0, now - attention.window + 1)
            seen = slice(first, now + 1)
            scores = torch.einsum("bk,bsk->bs", query[:, now, head], key[:, seen, kept]) / math.sqrt(organ.head_dim)
            if organ.sinks:
                scores = torch.cat((scores, weights["sinks"][head].expand(x.shape[0], 1)), -1)
            shares = scores.softmax(-1)[:, : now + 1 - first]
            mixed[:, now, head] = torch.einsum("bs,bsk->bk", shares, value[:, seen, kept])
    answer: Tensor = mixed.flatten(2) @ weights["o_proj.weight"].T + weights.get("o_proj.bias", torch.zeros(()))
    return answer


DRESSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one key for all": {"num_key_value_heads": 1},
    "no groups": {"num_key_value_heads": 4},
    "biases": {"bias": True, "output_bias": True},
    "norm per head": {"qk_norm": "head"},
    "norm over all": {"qk_norm": "full"},
    "clip": {"qk_norm": "full", "clip_qkv": 0.4},
    "window": {"sliding_window": 5},
    "window of one": {"sliding_window": 1},
    "sinks": {"sinks": True},
    "sinks, no groups": {"sinks": True, "num_key_value_heads": 4},
    "window and sinks": {"sliding_window": 4, "sinks": True, "qk_norm": "head", "bias": True},
}
# Prefill alone; far beyond the window in one piece; chunks across its edge; token by token all the way
CHUNKS = {"whole": [17], "chunks": [6, 1, 4, 1, 1, 4], "two": [9, 8], "decode": [1] * 17}


@pytest.mark.parametrize("sizes", CHUNKS.values(), ids=CHUNKS.keys())
@pytest.mark.parametrize("dress", DRESSES.values(), ids=DRESSES.keys())
@torch.no_grad()
def test_as_defined(dress: dict[str, Any], sizes: list[int], tiny_model: Make) -> None:
    kind = "sliding_attention" if "sliding_window" in dress else "full_attention"
    model = tiny_model(attention=dress, layer_types=[kind, kind])
    attention: Any = model.model.layers[1].mixer
    x = torch.randn(2, 17, model.config.hidden_size)
    memory, seen, mixed = attention.fresh_memory(2, 4, x), 0, []
    for chunk in x.split(sizes, 1):
        length = chunk.shape[1]
        rotation = model.model.positions(torch.arange(seen, seen + length)[None], x.dtype)
        masks = {kind: causal_mask(length, seen, attention.window, None, x.device)}
        y, memory = attention(chunk, memory, Moment(rotation, masks))
        mixed.append(y)
        seen += length
    expected = by_definition(attention, model.config, x)
    torch.testing.assert_close(torch.cat(mixed, 1).double(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_clip_and_sinks_are_felt(tiny_model: Make, tokens: Tensor) -> None:
    for dress in ({"clip_qkv": 0.1}, {"sinks": True}, {"qk_norm": "head"}, {"qk_norm": "full"}):
        model = tiny_model(attention=dress)
        plain = tiny_model()
        plain.load_state_dict(model.state_dict(), strict=False)
        assert not torch.allclose(model(tokens).logits, plain(tokens).logits, atol=1e-3), dress


PADDINGS = {
    "left": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1], [1] * 12]),
    "right": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], [1] * 12]),
}


@pytest.mark.parametrize("side", PADDINGS)
@pytest.mark.parametrize("dress", [{}, {"sinks": True}, {"sliding_window": 4}, {"sliding_window": 4, "sinks": True}])
@torch.no_grad()
def test_padding_is_not_heard(side: str, dress: dict[str, Any], tiny_model: Make, tokens: Tensor) -> None:
    kind = "sliding_attention" if "sliding_window" in dress else "full_attention"
    model = tiny_model(attention=dress, layer_types=["full_attention", kind])
    mask = PADDINGS[side]
    padded = model(tokens, attention_mask=mask).logits
    assert padded.isfinite().all()
    alone = model(tokens[:1, mask[0].bool()]).logits
    torch.testing.assert_close(padded[:1, mask[0].bool()], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded[1:], model(tokens[1:]).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_left_padding_stays_unheard_while_decoding(tiny_model: Make, tokens: Tensor) -> None:
    model = tiny_model(attention={"sliding_window": 4}, layer_types=["sliding_attention", "full_attention"])
    mask, state, steps = PADDINGS["left"], model.fresh_state(2), []
    for end in range(8, 13):
        new = tokens[:, :8] if end == 8 else tokens[:, end - 1 : end]
        output = model(new, attention_mask=mask[:, :end], past_key_values=state)
        state = output.past_key_values
        steps.append(output.logits[:, -1])
    alone = model(tokens[:1, 3:]).logits
    torch.testing.assert_close(torch.stack(steps, 1)[0], alone[0, 4:], rtol=1e-4, atol=1e-5)


ROTATIONS: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 500000.0},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16.0, "beta_slow": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "short_factor": [1.0, 1.5, 2.0],
        "long_factor": [2.0, 4.0, 8.0],
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("length", [1, 16, 17, 64, 100])
@pytest.mark.parametrize("kind", ROTATIONS)
def test_positions_turn_as_in_transformers(kind: str, length: int, tiny_config: MakeConfig) -> None:
    rope = {"rope_type": kind, "rope_theta": 10000.0, **ROTATIONS[kind]}
    config = tiny_config(rope_parameters=dict(rope))
    llama = LlamaConfig(
        hidden_size=24,
        num_attention_heads=4,
        head_dim=6,
        max_position_embeddings=64,
        rope_parameters=dict(rope),
    )
    positions = torch.arange(length)[None]
    cos, signed_sin = RotaryPositions(config)(positions, torch.float32)
    their_cos, their_sin = LlamaRotaryEmbedding(llama)(torch.empty(1), positions)
    torch.testing.assert_close(cos[:, 0], their_cos)
    torch.testing.assert_close(signed_sin[:, 0, :, 3:], their_sin[..., 3:])
    torch.testing.assert_close(signed_sin[:, 0, :, :3], -their_sin[..., :3])


def test_rotations_differ_from_one_another(tiny_config: MakeConfig) -> None:
    seen: list[Tensor] = []
    for kind, rope in ROTATIONS.items():
        config = tiny_config(rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **rope})
        cos, _ = RotaryPositions(config)(torch.arange(100)[None], torch.float32)
        assert not any(torch.allclose(cos, other, atol=1e-2) for other in seen), kind
        seen.append(cos)


def test_turning_keeps_lengths_and_relative_angles(tiny_config: MakeConfig) -> None:
    positions = RotaryPositions(tiny_config())
    query, key = torch.randn(6).expand(1, 1, 9, 6), torch.randn(6).expand(1, 1, 9, 6)
    here = positions(torch.arange(9)[None], torch.float32)
    later = positions(torch.arange(9)[None] + 30, torch.float32)
    torch.testing.assert_close(rotate(query, here).norm(dim=-1), query.norm(dim=-1))
    scores = rotate(query, here) @ rotate(key, here).mT
    torch.testing.assert_close(scores, rotate(query, later) @ rotate(key, later).mT, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores[0, 0, 1, 0], scores[0, 0, 8, 7])


@torch.no_grad()
def test_a_stretching_rotation_is_chosen_by_the_longest_position(tiny_model: Make) -> None:
    """Whatever ran before: the same text gives the same logits after a long one."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = tiny_model(rope_parameters=rope)
    short = torch.arange(10)[None]
    before = model(short).logits
    model(torch.arange(100)[None] % 61)
    assert torch.equal(model(short).logits, before)
