"""What every entry of the tables promises, and what an organ from outside promises with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.model.configuration import SPARSE
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.parts import FEED_FORWARDS, MIXERS, THALAMI, part
from pragnosia.model.state import State

OUTSIDER = "leaky_mixer:LeakyMixer"
Make = Callable[..., PragnosiaForCausalLM]

COLUMNS = {"width": 48, "column_width": 4, "thalamus": {"num_awake": 3}}
# name -> changes to the tiny shape: every entry of every table, and attention in its several dresses
CASES: dict[str, dict[str, Any]] = {
    **{f"mixer {name}": {"mixers": name, "dendrites": {"num_dendrites": 3}} for name in (*MIXERS, OUTSIDER)},
    **{
        f"feed-forward {name}": {"feed_forwards": name, "feed_forward": {"width": 10}}
        for name in FEED_FORWARDS
        if name not in ("columns", "memory", "spiking")
    },
    "feed-forward memory": {
        "experts": None,
        "feed_forwards": ["memory", "memory"],
        "hippocampus": {"num_rows": 49, "num_heads": 2, "num_awake": 3, "key_width": 8},
    },
    "feed-forward spiking": {"experts": None, "lif": {"width": 10, "num_steps": 3}},
    "spiking beside dense layers, with biases": {
        "experts": None,
        "feed_forwards": ["dense", "spiking"],
        "feed_forward": {"width": 10},
        "lif": {"width": 9, "bias": True},
    },
    "feed-forward columns": {"experts": None, "columns": COLUMNS},
    "columns that compete inside": {
        "experts": None,
        "columns": {**COLUMNS, "num_speaking": 2, "bias": True, "activation": "swiglu"},
    },
    "columns behind a router of low rank": {
        "experts": None,
        "columns": {**COLUMNS, "thalamus": {"num_awake": 3, "rank": 6}},
        "feed_forwards": ["dense", "columns"],
        "feed_forward": {"width": 10},
    },
    **{f"thalamus {name}": {"experts": {"thalamus": {"kind": name}}} for name in THALAMI},
    "attention window": {
        "layer_types": ["sliding_attention", "full_attention"],
        "attention": {"sliding_window": 3},
    },
    "attention window and sinks": {
        "layer_types": ["full_attention", "sliding_attention"],
        "attention": {"sliding_window": 4, "sinks": True, "bias": True, "output_bias": True},
    },
    "shared units": {"experts": {"num_shared": 2, "bias": True, "thalamus": {"bias": True}}},
    "mixed layers": {
        "mixers": ["attention", OUTSIDER],
        "feed_forwards": ["dense", "experts"],
        "feed_forward": {"width": 10, "activation": "relu2", "bias": True},
    },
    "gates": {"gates": {"layers": [0, 1]}, "experts": {"num_shared": 1}},
    "gates before dense layers that see a window": {
        "gates": {"layers": [0, 1]},
        "feed_forwards": ["dense", "experts"],
        "feed_forward": {"width": 10},
        "layer_types": ["sliding_attention", "full_attention"],
        "attention": {"sliding_window": 4, "sinks": True, "bias": True, "output_bias": True, "qk_norm": "head"},
        "experts": {"thalamus": {"kind": "threshold"}},
    },
    "gates before dendrites and columns": {
        "gates": {"layers": [1]},
        "dendrites": {"num_dendrites": 3},
        "experts": None,
        "columns": COLUMNS,
    },
    "untied": {"tie_word_embeddings": False, "attention": {"qk_norm": "full", "clip_qkv": 0.5}},
}


@pytest.fixture(scope="module", params=CASES)
def changes(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CASES[request.param]


@pytest.fixture(scope="module", autouse=True)
def _outsider_can_be_imported() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield


@pytest.fixture(scope="module")
def model(changes: dict[str, Any], tiny_model: Make) -> PragnosiaForCausalLM:
    return tiny_model(**changes)


def test_shapes(model: PragnosiaForCausalLM, tokens: Tensor) -> None:
    output = model(tokens, output_hidden_states=True)
    config = model.config
    assert output.logits.shape == (2, 12, config.vocab_size)
    assert output.logits.isfinite().all()
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 12, config.hidden_size)] * 3
    assert len(output.routings) == config.num_hidden_layers
    for kind, routing in zip(config.feed_forwards, output.routings, strict=True):
        assert (routing is not None and routing.routes) == (kind in SPARSE), "load is reported, never hidden"
        if routing is not None:
            assert routing.units.shape[0] == 24
        if kind in SPARSE:
            assert routing.units.shape == routing.strengths.shape
            assert routing.scores.shape == (24, config.units.num_units)
            assert int(routing.units.max()) < config.units.num_units
            assert int(routing.units.min()) >= -1


@torch.no_grad()
def test_a_token_changes_nothing_before_it(model: PragnosiaForCausalLM, tokens: Tensor) -> None:
    before = model(tokens).logits
    for moment in (0, 5, 11):
        changed = tokens.clone()
        changed[:, moment] = (changed[:, moment] + 1) % model.config.vocab_size
        after = model(changed).logits
        torch.testing.assert_close(after[:, :moment], before[:, :moment])
        assert not torch.allclose(after[:, moment], before[:, moment], atol=1e-3)


def test_no_gradient_reaches_back_from_the_past(model: PragnosiaForCausalLM, tokens: Tensor) -> None:
    embedded = model.model.embed_tokens(tokens).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model(inputs_embeds=embedded).logits[:, 5].square().sum(), embedded)
    assert not gradient[:, 6:].any()
    assert gradient[:, 5].any()
    assert gradient[:, 4].any(), "the past is heard"


@settings(max_examples=8)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.integers(1, 40))
@torch.no_grad()
def test_in_pieces_as_in_one(model: PragnosiaForCausalLM, sizes: list[int], room: int) -> None:
    tokens = torch.randint(0, model.config.vocab_size, (2, sum(sizes)), generator=torch.Generator().manual_seed(3))
    whole = model(tokens, use_cache=False).logits
    state = model.fresh_state(2, room)
    pieces = []
    for chunk in tokens.split(sizes, 1):
        output = model(chunk, past_key_values=state)
        state = output.past_key_values
        pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-3, atol=1e-4)
    assert state.length == state.get_seq_length() == sum(sizes)


def _measured_bytes(state: State) -> int:
    """Every storage a state holds, found without asking it."""
    storages: dict[int, int] = {}
    for memory in state.layers:
        for entry in dataclasses.fields(memory):  # type: ignore[arg-type]
            value = getattr(memory, entry.name)
            if isinstance(value, Tensor):
                storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(storages.values())


@torch.no_grad()
@pytest.mark.parametrize("room", [1, 12, 30])
def test_a_state_says_what_it_weighs(model: PragnosiaForCausalLM, tokens: Tensor, room: int) -> None:
    state = model.fresh_state(2, room)
    for chunk in tokens.split(5, 1):
        state = model(chunk, past_key_values=state).past_key_values
        assert state.nbytes >= _measured_bytes(state) > 0


@torch.no_grad()
def test_saved_in_shards_and_loaded(model: PragnosiaForCausalLM, tokens: Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    both: Any = PragnosiaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    loaded, info = both
    assert not any(info.values()), info
    here, there = model.state_dict(), loaded.state_dict()
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        assert torch.equal(tensor, there[name]), name
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_every_parameter_learns(model: PragnosiaForCausalLM, tokens: Tensor) -> None:
    model.zero_grad()
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert still == []
    model.zero_grad()


@pytest.mark.parametrize("table", [MIXERS, FEED_FORWARDS, THALAMI])
def test_an_unknown_name_is_told_its_nearest(table: dict[str, str]) -> None:
    name = max(table, key=len)
    with pytest.raises(ConfigError, match=f"Did you mean '{name}'.*module:Class"):
        part(table, name[:-1])


@pytest.mark.parametrize("name", ["no_such_module:Mixer", "json:Mixer", ":Mixer", "json:", "..:Mixer", "json:a:b"])
def test_an_outsider_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot load part") as caught:
        part(MIXERS, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{"mixers": "atention"}, {"feed_forwards": "expert"}, {"experts": {"thalamus": {"kind": "sofmax"}}}],
)
def test_a_model_of_unknown_parts(changes: dict[str, Any], tiny_model: Make) -> None:
    with pytest.raises(ConfigError, match="Did you mean"):
        tiny_model(**changes)
