"""Tokens that climb together become, bit for bit, what they become one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pragnosia import PragnosiaForCausalLM, kernels
from pragnosia.errors import CheckpointError
from pragnosia.inference.few_bits import load_in_few_bits
from pragnosia.inference.ladder import Climb, Ladder, climbable
from pragnosia.inference.program import Program, writable
from pragnosia.kernels.span import MOST

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
Make = Callable[..., PragnosiaForCausalLM]

HEADS = {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
UNITS = {"num_units": 8, "unit_width": 5}
DENSE = {"experts": None, "feed_forward": {"width": 37, "bias": True, "activation": "gelu"}}
CLOTHES: dict[str, dict[str, Any]] = {
    "dense": DENSE,
    "gated, wide": {"experts": None, "feed_forward": {"width": 80}, "hidden_size": 64},
    "softmax": {},
    "threshold, shared": {
        "experts": UNITS | {"num_shared": 2, "thalamus": {"kind": "threshold", "num_awake": 2, "renormalise": False}}
    },
    "biased": {
        "attention": HEADS | {"bias": True, "output_bias": True},
        "experts": UNITS | {"bias": True, "thalamus": {"kind": "softmax", "bias": True}},
    },
    "window, sinks": {
        "attention": HEADS | {"sliding_window": 9, "sinks": True, "qk_norm": "head"},
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gates": {"gates": {"layers": [1, 3]}, "experts": UNITS | {"num_shared": 2}},
    "gates, dense": {"gates": {"layers": [0, 2, 3]}, **DENSE, "attention": HEADS | {"output_bias": True}},
    "mixed, odd, tied": {
        "feed_forward": {"width": 19},
        "experts": UNITS,
        "feed_forwards": ["dense", "experts", "dense", "experts"],
        "tie_word_embeddings": True,
        "hidden_size": 22,
        "vocab_size": 67,
        "attention": {"num_heads": 10, "num_key_value_heads": 1, "head_dim": 4, "clip_qkv": 0.7},
    },
}
PROMPT, LENGTH = 11, 33


@pytest.fixture(params=[1, 3], ids="{} threads".format)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As many threads as asked for, however little there is to do."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr("pragnosia.kernels.step.SMALL", 1)
    yield
    torch.set_num_threads(before)


def deep(make_model: Make, **dress: Any) -> PragnosiaForCausalLM:
    """Four layers, with biases and norms that are felt."""
    model = make_model(**({"num_hidden_layers": 4, "max_position_embeddings": 64} | dress))
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 1:
                tensor.add_(0.3 * torch.randn_like(tensor))
    return model


def begun(model: Any, ids: list[int]) -> Any:
    """The state behind the prompt."""
    with torch.inference_mode():
        read = model(torch.tensor([ids[:PROMPT]]), past_key_values=model.fresh_state(1, LENGTH), logits_to_keep=1)
    assert writable(model, read.past_key_values)
    return read.past_key_values


def one_by_one(model: Any, state: Any, ids: list[int]) -> tuple[list[Tensor], Program]:
    """A program's logits for every token."""
    program = Program(model, state.fork())
    logits = []
    for token in ids[PROMPT:]:
        program(token)
        program.length += 1
        logits.append(program.logits[0].clone())
    return logits, program


def same_memory(ladder: Ladder, program: Program) -> bool:
    """Bit for bit, as far as either remembers."""
    ours, theirs = ladder.state(program.length), program.state
    return all(
        torch.equal(getattr(mine, part)[:, :, : program.length], getattr(its, part)[:, :, : program.length])
        for mine, its in zip(ours.layers, theirs.layers, strict=True)
        for part in ("keys", "values")
    )


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dress", CLOTHES)
def test_bit_for_bit(dress: str, dtype: torch.dtype, make_model: Make) -> None:
    model = deep(make_model, **CLOTHES[dress]).to(dtype)
    check(model, torch.randint(0, 60, (LENGTH,)).tolist())


def check(model: Any, ids: list[int]) -> None:
    """Groups of 1 to 9 tokens, through layers 1, 3 and 4: the program's logits, memory and routing."""
    state = begun(model, ids)
    logits, program = one_by_one(model, state, ids)
    assert torch.stack(logits).float().std() > 0.02, "flat answers prove little"
    climbs: list[Climb] = []
    ladder, at = Ladder(model, state.fork(), trace=climbs.append), PROMPT
    while at < LENGTH:
        group = ids[at : at + 1 + at % 9]
        for token in group:
            ladder.enter(token, 1, head=False)
        ladder.lift(3)
        ladder.lift(4, heads=len(group))
        for row in range(len(group)):
            assert torch.equal(ladder.logits[row], logits[at - PROMPT + row]), (at, row)
            assert int(ladder.likeliest[row]) == int(logits[at - PROMPT + row].argmax())
        at += len(group)
    assert ladder.settled == ladder.length == LENGTH
    assert same_memory(ladder, program)
    last, told = climbs[-1], program.routings()[3]
    assert (told is None) == (last.routings[0] is None)
    if told is not None and last.routings[0] is not None:
        assert torch.equal(last.routings[0].units[-1], told.units[0])
        assert torch.equal(last.routings[0].strengths[-1], told.strengths[0])
        ours, theirs = last.routings[0].gate, told.gate
        assert (ours is None) == (theirs is None)
        assert ours is None or theirs is None or torch.equal(ours.scores[-1], theirs.scores[0])


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("dress", ["gated, wide", "softmax", "gates"])
def test_packed_weights(bits: str, dress: str, make_model: Make, tmp_path: Any) -> None:
    deep(make_model, **CLOTHES[dress]).save_pretrained(tmp_path)
    check(load_in_few_bits(tmp_path, bits, None), torch.randint(0, 60, (LENGTH,)).tolist())


def test_tokens_that_wait_at_different_layers(make_model: Make) -> None:
    model = deep(make_model, **DENSE)
    ids = torch.randint(0, 60, (LENGTH,)).tolist()
    state = begun(model, ids)
    logits, program = one_by_one(model, state, ids)
    ladder = Ladder(model, state.fork())
    for number, token in enumerate(ids[PROMPT:]):
        ladder.enter(token, 1, head=True)
        if number % 3 == 1:
            ladder.lift(2, heads=1)
        if number % 7 == 6:
            ladder.lift(3)
        assert ladder.waiting == sorted(ladder.waiting, reverse=True)
    ladder.lift(4, heads=1)
    assert torch.equal(ladder.logits[0], logits[-1])
    assert same_memory(ladder, program)


def test_what_was_read_ahead_can_be_forgotten(make_model: Make) -> None:
    model = deep(make_model, **DENSE)
    ids = torch.randint(0, 60, (LENGTH,)).tolist()
    state = begun(model, ids)
    logits, program = one_by_one(model, state, ids)
    ladder = Ladder(model, state.fork())
    for token in (5, 6, 7):
        ladder.enter(token, 2, head=False)
    ladder.lift(4)
    ladder.enter(8, 2, head=False)
    ladder.cut(PROMPT)
    assert ladder.length == ladder.settled == PROMPT
    for token in ids[PROMPT:]:
        ladder.enter(token, 2, head=False)
    ladder.lift(4, heads=3)
    assert [torch.equal(ladder.logits[row], logits[row - 3]) for row in range(3)] == [True] * 3
    assert same_memory(ladder, program)


def test_an_exit_is_the_norm_and_the_head(make_model: Make) -> None:
    model: Any = deep(make_model)
    ids = torch.randint(0, 60, (LENGTH,)).tolist()
    ladder = Ladder(model, begun(model, ids))
    for token in ids[PROMPT:]:
        ladder.enter(token, 2, head=True)
    with torch.inference_mode():
        streams = model.model(torch.tensor([ids]), use_cache=False, output_hidden_states=True).hidden_states
        expected = model.lm_head(model.model.norm(streams[2][0, -1]))
    torch.testing.assert_close(ladder.logits[0], expected, atol=2e-5, rtol=1e-4)
    word, sure = ladder.guess()
    assert word == int(expected.argmax())
    assert sure == pytest.approx(float(expected.softmax(-1).max()), rel=1e-4)


def test_what_is_remembered_of_a_token_that_left(make_model: Make) -> None:
    model: Any = deep(make_model, **DENSE)
    ids = torch.randint(0, 60, (PROMPT + 1,)).tolist()
    ladder = Ladder(model, begun(model, ids))
    ladder.enter(ids[PROMPT], 2, head=False)
    ladder.remember()
    state: Any = ladder.state(PROMPT + 1)
    with torch.inference_mode():
        stack = model.model
        stream = stack(torch.tensor([ids]), use_cache=False, output_hidden_states=True).hidden_states[2][:, -1:]
        for number in (2, 3):
            layer = stack.layers[number]
            mixer, normed = layer.mixer, layer.mixer_norm(stream)
            key, value = mixer._heads(mixer.k_proj(normed), mixer.k_norm), mixer._heads(mixer.v_proj(normed))
            cos, sin = stack.positions(torch.tensor([[PROMPT]]), torch.float32)
            turned = key * cos + key.roll(3, -1) * sin
            memory = state.layers[number]
            torch.testing.assert_close(memory.keys[:, :, PROMPT : PROMPT + 1], turned, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(memory.values[:, :, PROMPT : PROMPT + 1], value, atol=2e-5, rtol=1e-4)


def test_no_more_than_a_span_wait(make_model: Make) -> None:
    model = deep(make_model, max_position_embeddings=128)
    with torch.inference_mode():
        state = model(torch.tensor([[1]]), past_key_values=model.fresh_state(1, 60)).past_key_values
    ladder = Ladder(model, state)
    for token in range(MOST):
        assert not ladder.full
        ladder.enter(token, 1, head=False)
    assert ladder.full
    ladder.lift(4, heads=MOST)
    assert ladder.settled == MOST + 1


def test_positions_that_stretch_do_not_climb(make_model: Make) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
    assert not climbable(make_model(rope_parameters=rope))
    assert climbable(make_model())


def test_a_unit_that_cannot_be_read(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from pragnosia.kernels.step import UnitUnreadableError

    model = deep(make_model, **DENSE)
    ladder = Ladder(model, begun(model, [1] * PROMPT))

    class Pool:
        def failure(self) -> str:
            return "units.bin: damaged"

    def fails(_: Any) -> None:
        raise UnitUnreadableError

    monkeypatch.setattr("pragnosia.kernels.span.run", fails)
    ladder._pen.pool = Pool()  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match=r"units\.bin: damaged"):
        ladder.enter(3, 1, head=False)
    assert ladder.length == PROMPT
