"""The decode loop: the same tokens as transformers, turn by turn as at once, and a trace of who woke."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pragnosia import Pragnosia, PragnosiaForCausalLM
from pragnosia.errors import CheckpointError, ConfigError, PromptError
from pragnosia.inference.decode import Decoder, Trace
from pragnosia.inference.sampler import Sampling
from pragnosia.model.setting import Setting

GREEDY = Sampling()
Make = Callable[..., PragnosiaForCausalLM]
DRESSES: dict[str, dict[str, Any]] = {
    "experts": {},
    "threshold": {"experts": {"num_units": 8, "unit_width": 5, "thalamus": {"kind": "threshold"}}},
    "window": {
        "attention": {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "sliding_window": 5, "sinks": True},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "dense, stretched": {
        "experts": None,
        "feed_forward": {"width": 10},
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 48},
    },
}


def told(decoder: Decoder, count: int, **options: Any) -> list[int]:
    return list(decoder.speak(count, Sampling(**options)))


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}], ids=str)
@pytest.mark.parametrize("dress", DRESSES)
def test_the_same_greedy_tokens_as_transformers(dress: str, options: dict[str, Any], make_model: Make) -> None:
    model: Any = make_model(**DRESSES[dress])
    model.generation_config.eos_token_id = None
    ids = torch.randint(0, 200, (1, 11))
    expected = model.generate(ids, max_new_tokens=40, do_sample=False, **options)[0, 11:].tolist()
    assert len(set(expected)) > 3, "a loop of one token would prove little"
    decoder = Decoder(model, room=20)
    decoder.read(ids[0].tolist())
    assert told(decoder, 40, **options) == expected


@settings(max_examples=10)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=4), st.integers(1, 30))
def test_turn_by_turn_as_at_once(speaker: Pragnosia, turns: list[tuple[int, int]], room: int) -> None:
    generator = torch.Generator().manual_seed(5)
    decoder = Decoder(speaker.model, room)
    for read, spoken in turns:
        decoder.read(torch.randint(0, 200, (read,), generator=generator).tolist())
        before = decoder.tokens[0].tolist()
        said = told(decoder, spoken)
        assert decoder.tokens[0].tolist() == before + said
        alone = Decoder(speaker.model, 256)
        alone.read(before)
        assert told(alone, spoken) == said
    assert decoder.state.length == decoder.tokens.shape[1] - 1, "nothing is read twice"


def test_each_token_is_read_once(speaker: Pragnosia) -> None:
    decoder = Decoder(speaker.model, 8, trace=Trace())
    decoder.read([1, 2, 3])
    told(decoder, 4)
    decoder.read([4, 5])
    decoder.read([6])
    told(decoder, 2)
    assert decoder.trace is not None
    assert decoder.trace.num_tokens == [3, 1, 1, 1, 4, 1]
    assert [len(step) for step, _ in decoder.trace.steps()] == [2] * 6


def test_a_stop_token_ends_and_is_not_told(speaker: Pragnosia) -> None:
    decoder = Decoder(speaker.model, 64)
    decoder.read([1, 2, 3])
    whole = told(decoder, 20)
    place = next(index for index in range(2, 20) if whole[index] not in whole[:index])
    again = Decoder(speaker.model, 64)
    again.read([1, 2, 3])
    assert list(again.speak(20, GREEDY, {whole[place]})) == whole[:place]


def test_a_stopped_answer_leaves_the_text_usable(speaker: Pragnosia) -> None:
    decoder = Decoder(speaker.model, 64)
    decoder.read([1, 2, 3])
    answer = decoder.speak(20, GREEDY)
    said = [next(answer), next(answer)]
    answer.close()  # type: ignore[attr-defined]
    decoder.read([9])
    alone = Decoder(speaker.model, 64)
    alone.read([1, 2, 3, *said, 9])
    assert told(decoder, 5) == told(alone, 5)


@pytest.mark.parametrize("awake", [1.0, 0.5, 0.25])
def test_a_setting_wakes_fewer(awake: float, speaker: Pragnosia) -> None:
    trace = Trace()
    decoder = Decoder(speaker.model, 64, Setting(awake=awake), trace)
    decoder.read([1, 2, 3])
    told(decoder, 5)
    for routings, tokens in trace.steps():
        for routing in routings:
            assert routing is not None
            assert routing.units.shape == (tokens, round(4 * awake))


def test_the_context_ends_the_answer(make_model: Make) -> None:
    decoder = Decoder(make_model(max_position_embeddings=16), 16)
    decoder.read(list(range(10)))
    assert len(told(decoder, 100)) == 6
    assert told(decoder, 100) == []
    with pytest.raises(PromptError, match="context holds 16"):
        decoder.read([1])


@pytest.mark.parametrize("length", [16, 17, 400])
def test_a_prompt_longer_than_the_context(length: int, make_model: Make) -> None:
    decoder = Decoder(make_model(max_position_embeddings=16), 99)
    with pytest.raises(
        PromptError, match=f"the prompt has {length} tokens and needs room for one more; the model's context holds 16"
    ):
        decoder.read([1] * length)
    decoder.read([1] * 15)
    assert len(told(decoder, 5)) == 1, "a refused prompt was not half read"


@pytest.mark.parametrize("token", [-1, 10**6])
def test_a_token_nobody_knows(token: int, speaker: Pragnosia) -> None:
    decoder = Decoder(speaker.model, 9)
    with pytest.raises(PromptError, match=f"token {token} is not in the model's vocabulary of"):
        decoder.read([1, token])
    assert decoder.tokens.shape[1] == 0


def test_nothing_to_continue(speaker: Pragnosia) -> None:
    with pytest.raises(PromptError, match="there is no token to continue"):
        told(Decoder(speaker.model, 9), 3)


@pytest.mark.parametrize("count", [0, -1, -50])
def test_no_tokens_wanted(count: int, speaker: Pragnosia) -> None:
    with pytest.raises(PromptError, match=f"max_new_tokens is {count}; it must be 1 or more"):
        speaker.generate_tokens([1, 2], max_new_tokens=count)


def test_impossible_energy(speaker: Pragnosia) -> None:
    with pytest.raises(ConfigError, match="energy is 2"):
        speaker.generate_tokens([1, 2], max_new_tokens=1, energy=2)


def test_no_gradients_are_kept(speaker: Pragnosia) -> None:
    decoder = Decoder(speaker.model, 64)
    decoder.read([1, 2])
    told(decoder, 3)
    memory: Any = decoder.state.layers[0]
    assert not memory.keys.requires_grad


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"repetition_penalty": 1.2}], ids=str)
@pytest.mark.parametrize("written", [True, False], ids=["program", "modules"])
def test_scores_that_are_no_numbers(
    written: bool, options: dict[str, Any], make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not written:
        monkeypatch.setattr("pragnosia.inference.decode.writable", lambda *_: False)
    model = make_model()
    decoder = Decoder(model, 64)
    decoder.read([1, 2, 3])
    assert len(told(decoder, 4, **options)) == 4
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(CheckpointError, match="no numbers"):
        told(decoder, 4, **options)


def test_reading_tells_how_far_it_is(speaker: Pragnosia) -> None:
    told: list[tuple[int, int]] = []
    decoder = speaker.decoder(40)
    decoder.progress = lambda done, total: told.append((done, total))
    decoder.read([3, 1, 4, 1, 5])
    said = list(decoder.speak(4, Sampling(temperature=0)))
    layers = len(speaker.model.model.layers)
    assert told == [(5 * done, 5 * layers) for done in range(layers + 1)]  # the answer's own tokens tell nothing
    assert not any(layer._forward_hooks for layer in speaker.model.model.layers)
    assert said == speaker.generate_tokens([3, 1, 4, 1, 5], max_new_tokens=4)
    assert (decoder.decoding == "compiled") == (decoder._program is not None)
