"""State is a value: old ones stay usable, forks part ways, and transformers' caches say the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache

from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.state import KeyValues, Memory, State, causal_mask

Make = Callable[..., PragnosiaForCausalLM]
DRESSES: dict[str, dict[str, Any]] = {
    "full": {},
    "window": {"attention": {"sliding_window": 4}, "layer_types": ["sliding_attention", "full_attention"]},
    "window everywhere": {"attention": {"sliding_window": 4}, "layer_types": ["sliding_attention"] * 2},
    "window and sinks": {
        "attention": {"sliding_window": 4, "sinks": True},
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "fleeting, a window and sinks": {
        "attention": {"sliding_window": 4, "sinks": True},
        "layer_types": ["full_attention", "sliding_attention"],
        "fleeting": {"intact": 2, "power": 0.7},
    },
}
CACHES: dict[str, Callable[[PragnosiaForCausalLM], State | Cache]] = {
    "state": lambda model: model.fresh_state(2, 8),
    "dynamic": lambda model: DynamicCache(config=model.config),
    "dynamic that knows no windows": lambda model: DynamicCache(),
    "static": lambda model: StaticCache(config=model.config, max_cache_len=16),
}


@pytest.fixture(scope="module", params=DRESSES)
def model(request: pytest.FixtureRequest, tiny_model: Make) -> PragnosiaForCausalLM:
    return tiny_model(**DRESSES[request.param])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("cache", CACHES)
@torch.no_grad()
def test_every_cache_remembers_the_same(
    model: PragnosiaForCausalLM, tokens: Tensor, cache: str, padded: bool, implementation: str
) -> None:
    model.set_attn_implementation(implementation)
    mask = torch.ones_like(tokens)
    if padded:
        mask[0, :3] = 0
    whole = model(tokens, attention_mask=mask, use_cache=False).logits
    past: Any = CACHES[cache](model)
    seen, pieces = 0, []
    for chunk in tokens.split([7, 2, 1, 1, 1], 1):
        seen += chunk.shape[1]
        output = model(chunk, attention_mask=mask[:, :seen] if padded else None, past_key_values=past)
        past = output.past_key_values
        pieces.append(output.logits)
        assert int(past.get_seq_length()) == seen
    heard = mask.bool()
    torch.testing.assert_close(torch.cat(pieces, 1)[heard], whole[heard], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_old_state_stays_usable(model: PragnosiaForCausalLM, tokens: Tensor) -> None:
    whole = model(tokens, use_cache=False).logits
    early: Any = model(tokens[:, :5], past_key_values=model.fresh_state(2, 6)).past_key_values
    held = [(memory.length, memory.keys[:, :, :5].clone()) for memory in early.layers]
    late = early
    for moment in range(5, 12):  # grows past its room on the way
        late = model(tokens[:, moment : moment + 1], past_key_values=late).past_key_values
    assert early.length == 5
    assert [memory.length for memory in early.layers] == [length for length, _ in held]
    assert all(torch.equal(memory.keys[:, :, :5], keys) for memory, (_, keys) in zip(early.layers, held, strict=True))
    again = model(tokens[:, 5:], past_key_values=early)
    torch.testing.assert_close(again.logits, whole[:, 5:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_forks_part_ways(model: PragnosiaForCausalLM, tokens: Tensor) -> None:
    other = tokens.clone()
    other[:, 5:9] = (other[:, 5:9] + 1) % 61
    common = model(tokens[:, :5], past_key_values=model.fresh_state(2, 20)).past_key_values
    fork = common.fork()
    assert fork.length == common.length
    assert fork.nbytes == common.nbytes
    mine = model(tokens[:, 5:9], past_key_values=common).past_key_values
    theirs = model(other[:, 5:9], past_key_values=fork).past_key_values
    for text, state in ((tokens, mine), (other, theirs)):
        expected = model(torch.cat((text[:, :9], tokens[:, 9:]), 1), use_cache=False).logits[:, 9:]
        torch.testing.assert_close(model(tokens[:, 9:], past_key_values=state).logits, expected, rtol=1e-4, atol=1e-5)


def test_no_state_where_none_is_wanted(model: PragnosiaForCausalLM, tokens: Tensor) -> None:
    assert model(tokens, use_cache=False).past_key_values is None
    model.train()
    assert model(tokens).past_key_values is None, "training remembers nothing unless asked"
    model.train(False)
    assert model(tokens).past_key_values.length == 12


def test_room_is_allocated_once(tokens: Tensor, tiny_model: Make) -> None:
    model = tiny_model()
    state: Any = model.fresh_state(2, 12)
    grown = model(tokens, past_key_values=state).past_key_values
    assert grown.nbytes == state.nbytes == 2 * 2 * (2 * 2 * 12 * 6) * 4, "layers x (keys, values) x B H M K x float32"
    assert grown.layers[0].keys.data_ptr() == state.layers[0].keys.data_ptr()


def test_growing_at_least_doubles() -> None:
    memory = KeyValues.empty((1, 2, 4, 6), torch.empty(0))
    rooms = []
    for _ in range(9):
        (keys, values), memory = memory.extend(torch.randn(1, 2, 1, 6), torch.randn(1, 2, 1, 6))
        rooms.append(memory.keys.shape[2])
    assert keys.shape == values.shape == (1, 2, 9, 6)
    assert rooms == [4, 4, 4, 4, 8, 8, 8, 8, 16]
    assert isinstance(memory, Memory)


@torch.no_grad()
def test_a_gradient_flows_through_a_remembered_past(tiny_model: Make, tokens: Tensor) -> None:
    """Truncated back-propagation: inside one piece as without a state."""
    model = tiny_model()
    past = model(tokens[:, :6], past_key_values=model.fresh_state(2, 20)).past_key_values
    with torch.enable_grad():
        embedded = model.model.embed_tokens(tokens[:, 6:]).detach().requires_grad_()
        output = model(inputs_embeds=embedded, past_key_values=past)
        (gradient,) = torch.autograd.grad(output.logits[:, -1].square().sum(), embedded)
    whole = model.model.embed_tokens(tokens).detach()
    with torch.enable_grad():
        whole.requires_grad_()
        output = model(inputs_embeds=whole, use_cache=False)
        (expected,) = torch.autograd.grad(output.logits[:, -1].square().sum(), whole)
    torch.testing.assert_close(gradient, expected[:, 6:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("length", "seen", "window"), [(1, 9, None), (1, 9, 4), (5, 0, None), (3, 0, 4), (4, 0, 4)])
def test_no_mask_where_the_plain_rules_do(length: int, seen: int, window: int | None) -> None:
    assert causal_mask(length, seen, window, None, torch.device("cpu")) is None


@pytest.mark.parametrize(("length", "seen", "window"), [(3, 2, None), (6, 0, 4), (3, 2, 4), (3, 5, 1)])
def test_a_mask_elsewhere(length: int, seen: int, window: int | None) -> None:
    mask = causal_mask(length, seen, window, None, torch.device("cpu"))
    assert mask is not None
    for query in range(length):
        for key in range(seen + length):
            near = window is None or seen + query - key < window
            assert bool(mask[query, key]) == (key <= seen + query and near)
