"""Speaking with fewer layers: drafts change no word; who leaves early says what its exit says, and memory is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pragnosia import PragnosiaForCausalLM, kernels
from pragnosia.errors import ConfigError
from pragnosia.inference.decode import Decoder, Trace
from pragnosia.inference.early import Foresight, Leaving, Tally
from pragnosia.inference.exits import Draft
from pragnosia.inference.ladder import Ladder
from pragnosia.inference.program import Program
from pragnosia.inference.sampler import Sampling
from pragnosia.model.setting import Setting

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
Make = Callable[..., PragnosiaForCausalLM]
PROMPT = [5, 6, 7, 8, 9]
DENSE = {"experts": None, "feed_forward": {"width": 40}}
SHARED = {"experts": {"num_units": 8, "unit_width": 5, "num_shared": 2, "thalamus": {"num_awake": 3}}}
WINDOW = {
    "attention": {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "sliding_window": 7},
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}
GATED = {**SHARED, "gates": {"layers": [1, 3, 4]}}
DENDRITES = {
    "dendrites": {"num_dendrites": 4},
    "gates": {"layers": [1, 3]},
    "experts": None,
    "columns": {"width": 96, "column_width": 8, "thalamus": {"num_awake": 4}},
}


def tapering(make_model: Make, depth: float, **dress: Any) -> PragnosiaForCausalLM:
    """Six layers of which those after the second say `depth` times as much: the less, the better the exits guess."""
    model: Any = make_model(**({"num_hidden_layers": 6} | dress))
    with torch.no_grad():
        for layer in model.model.layers[2:]:
            getattr(layer.mixer, "attention", layer.mixer).o_proj.weight.mul_(depth)
            organ = layer.feed_forward
            for down in (
                *([organ.down.weight] if hasattr(organ, "down") else [organ.bank.down]),
                *([organ.shared.down.weight] if getattr(organ, "shared", None) is not None else []),
            ):
                down.mul_(depth)
    return model  # type: ignore[no-any-return]


def drafting(layer: int, confidence: float = 0.0) -> dict[str, Any]:
    return {"draft": Draft(layer=layer, confidence=confidence)}


def leaving(*leave: tuple[int, float], memory: Any = "exact") -> dict[str, Any]:
    return {"setting": Setting(leave=leave, memory=memory)}


def spoken(
    model: Any, early: dict[str, Any] | None, count: int = 60, room: int = 90, **sampling: Any
) -> tuple[list[int], Decoder]:
    decoder = Decoder(model, room, **(early or {}))
    decoder.read(PROMPT)
    return list(decoder.speak(count, Sampling(**sampling))), decoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("depth", [0.005, 0.4, 1.0])
@pytest.mark.parametrize(
    "dress",
    [DENSE, {}, SHARED, WINDOW, GATED, DENDRITES],
    ids=["dense", "experts", "shared", "window", "gated", "dendrites"],
)
def test_drafts_change_no_word(dress: dict[str, Any], depth: float, dtype: torch.dtype, make_model: Make) -> None:
    model = tapering(make_model, depth, **dress).to(dtype)
    plain, _ = spoken(model, None)
    for layer, confidence in ((2, 0.0), (1, 0.2), (5, 0.0)):
        said, decoder = spoken(model, drafting(layer, confidence))
        assert said == plain
        assert decoder.decoding == "speculative"
        assert decoder.state.length == len(decoder.ids) - 1
    tally = decoder.tally
    assert tally.tokens == 59  # the first token comes with the prompt
    assert 0 <= tally.accepted <= tally.drafted
    if depth < 0.1:
        assert tally.accepted > 0.6 * tally.drafted > 20
        assert tally.passes < 1.5 * 6 * tally.tokens


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0.8, "seed": 3, "top_k": 20}, {"repetition_penalty": 1.3}, {"temperature": 0.5, "seed": 1}],
)
def test_whoever_chooses_chooses_the_same(sampling: dict[str, Any], make_model: Make) -> None:
    model = tapering(make_model, 0.1, **DENSE)
    assert spoken(model, drafting(2), **sampling)[0] == spoken(model, None, **sampling)[0]


def test_the_logits_are_those_of_a_program(make_model: Make) -> None:
    model = tapering(make_model, 0.2, **DENSE)
    with torch.inference_mode():
        state = model(torch.tensor([PROMPT]), past_key_values=model.fresh_state(1, 64)).past_key_values
    plain = Program(model, state.fork())
    ahead = Foresight(Ladder(model, state.fork()), Draft(layer=2, confidence=0.0), Tally())
    token = 3
    for number in range(50):
        word = plain(token)
        assert ahead(token) == word
        assert ahead(token) == word, "asked again, as after an interrupt"
        assert torch.equal(ahead.logits, plain.logits)
        plain.length += 1
        ahead.length += 1
        token = word if number % 5 else (word + 1) % 60  # now and then another word than was foreseen
    for mine, its in zip(ahead.state.layers, plain.state.layers, strict=True):
        assert torch.equal(mine.keys[:, :, : plain.length], its.keys[:, :, : plain.length])  # type: ignore[union-attr]


def test_turns_room_and_context(make_model: Make) -> None:
    model = tapering(make_model, 0.1, max_position_embeddings=48, **DENSE)
    answers = []
    for early in ({}, drafting(2)):
        decoder = Decoder(model, 12, **early)  # grows
        decoder.read([1, 2, 3])
        words = decoder.speak(9, Sampling())
        said = [next(words) for _ in range(5)]
        words.close()  # type: ignore[attr-defined]
        decoder.read([4, 5])
        said += [*decoder.speak(7, Sampling()), *decoder.speak(100, Sampling())]
        answers.append((said, decoder.ids))
    assert answers[0] == answers[1]
    assert len(answers[1][1]) == 48


def test_drafts_rest_where_none_holds(make_model: Make) -> None:
    model: Any = tapering(make_model, 1.0, **DENSE)
    with torch.no_grad():
        model.model.layers[5].feed_forward.down.weight.mul_(40)  # the last layer has all the say
    said, decoder = spoken(model, drafting(1), 150, 170)
    assert said == spoken(model, None, 150, 170)[0]
    assert decoder.tally.accepted < 0.3 * decoder.tally.drafted
    assert decoder.tally.drafted < 2 * decoder.tally.tokens


def test_a_climb_is_told_of_and_accounted_for(make_model: Make) -> None:
    model = tapering(make_model, 0.05, **SHARED)
    trace = Trace()
    decoder = Decoder(model, 90, trace=trace, **drafting(2))
    decoder.read(PROMPT)
    list(decoder.speak(40, Sampling()))
    assert trace.num_tokens == [5]
    assert sum((climb.end - climb.start) * climb.tokens for climb in trace.climbs) == decoder.tally.passes
    assert all(len(climb.routings) == climb.end - climb.start for climb in trace.climbs)
    assert all(r is not None and len(r.units) == climb.tokens for climb in trace.climbs for r in climb.routings)


def reference(model: Any, leave: tuple[tuple[int, float], ...], count: int) -> tuple[list[int], list[int]]:
    """Early exit by the modules, everything anew for each token; and where each token left."""
    ids, depths = list(PROMPT), []
    with torch.inference_mode():
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        for _ in range(count - 1):
            output = model.model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
            for layer, confidence in (*leave, (6, 0.0)):
                stream = output.hidden_states[layer][0, -1]
                logits = model.lm_head(stream if layer == 6 else model.model.norm(stream))
                if float(logits.softmax(-1).max()) >= confidence:
                    break
            depths.append(layer)
            ids.append(int(logits.argmax()))
    return ids[len(PROMPT) :], depths


@pytest.mark.parametrize("dress", [DENSE, SHARED, {**DENSE, "dendrites": {}}], ids=["dense", "shared", "dendrites"])
def test_leaving_early_remembers_exactly(dress: dict[str, Any], make_model: Make) -> None:
    model: Any = tapering(make_model, 0.5, **dress)
    leave = ((1, 0.08), (3, 0.06))
    expected, depths = reference(model, leave, 50)
    said, decoder = spoken(model, leaving(*leave), 50)
    assert said == expected
    assert decoder.decoding == "leaving early"
    assert decoder.tally.left == {layer: depths.count(layer) for layer in set(depths)}
    assert len(set(depths)) == 3, "a test of one way out proves little"
    state: Any = decoder.state
    assert state.length == len(decoder.ids) - 1
    with torch.inference_mode():
        whole = model(torch.tensor([decoder.ids[:-1]]), past_key_values=model.fresh_state(1, 90)).past_key_values
    for mine, its in zip(state.layers, whole.layers, strict=True):
        torch.testing.assert_close(
            mine.keys[:, :, : state.length], its.keys[:, :, : state.length], atol=5e-5, rtol=1e-3
        )


def test_leaving_costs_fewer_layers_where_memory_is_propagated(make_model: Make) -> None:
    model = tapering(make_model, 0.0, **DENSE)
    plain, _ = spoken(model, None, 50)
    said, decoder = spoken(model, leaving((2, 0.02), memory="propagated"), 50)
    assert decoder.tally.layers_per_token == 2
    assert said == plain, "the layers above say nothing"
    assert decoder.state.length == len(decoder.ids) - 1
    exact = spoken(model, leaving((2, 0.02)), 50)[1]
    _ = exact.state  # everybody catches up
    assert exact.tally.layers_per_token == 6


def test_an_exit_that_is_never_sure_changes_nothing(make_model: Make) -> None:
    model = tapering(make_model, 0.5, **SHARED)
    said, decoder = spoken(model, leaving((2, 1.1), (4, 1.1)))
    assert said == spoken(model, None)[0]
    assert decoder.tally.left == {6: decoder.tally.tokens}


def test_an_interrupt_loses_nothing(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tapering(make_model, 0.3, **DENSE)
    for early in (drafting(2), leaving((2, 0.3))):
        whole, _ = spoken(model, early, 30)
        decoder = Decoder(model, 90, **early)
        decoder.read(PROMPT)
        words = decoder.speak(30, Sampling())
        said = [next(words) for _ in range(6)]
        with monkeypatch.context() as patch:

            def interrupted(*_: Any, **__: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(Ladder, "lift", interrupted)
            patch.setattr(Ladder, "guess", interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(words)

        said = decoder.ids[len(PROMPT) :]
        said += list(decoder.speak(30 - len(said), Sampling()))
        assert said == whole


def test_what_cannot_climb_speaks_with_all_layers(make_model: Make) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
    model = make_model(rope_parameters=rope, max_position_embeddings=64)
    said, decoder = spoken(model, drafting(1), 20, 40)
    assert decoder.decoding == "compiled"
    assert said == spoken(model, None, 20, 40)[0]
    model.double()
    assert spoken(model, drafting(1), 5, 40)[1].decoding == "modules"


def test_leaving_is_asked_as_a_program_is(make_model: Make) -> None:
    model = tapering(make_model, 0.5, **DENSE)
    with torch.inference_mode():
        state = model(torch.tensor([PROMPT]), past_key_values=model.fresh_state(1, 64)).past_key_values
    program = Leaving(Ladder(model, state), Setting(leave=((2, 0.0),)), Tally())
    word = program(3)
    assert program(3) == word, "asked again, as after an interrupt"
    assert int(program.logits.argmax()) == word


def test_a_layer_past_the_last(make_model: Make) -> None:
    model = tapering(make_model, 0.5, **DENSE)
    for layer in (6, 7):
        with pytest.raises(ConfigError, match=f"an exit after layer {layer} is none: the model has 6 layers"):
            Decoder(model, 90, Setting(leave=((layer, 0.5),)))
