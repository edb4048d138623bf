"""A program computes what the modules do: the same logits, the same state, the same routing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from pragnosia import Pragnosia, PragnosiaForCausalLM, kernels
from pragnosia.inference.decode import Decoder, Trace
from pragnosia.inference.program import Program, writable
from pragnosia.inference.sampler import Sampling
from pragnosia.model.setting import Setting

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
Make = Callable[..., PragnosiaForCausalLM]

ROUTER = {"kind": "sigmoid", "num_awake": 3, "balance_rate": 0.01, "scale": 2.0}
BIASED = {"bias": True, "activation": "clamped_swiglu", "thalamus": {"kind": "softmax", "bias": True}}
HEADS = {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
UNITS = {"num_units": 8, "unit_width": 5}
CLOTHES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "sigmoid": {"experts": UNITS | {"thalamus": ROUTER}},
    "threshold": {"experts": UNITS | {"thalamus": {"kind": "threshold", "num_awake": 2, "renormalise": False}}},
    "shared units": {"experts": UNITS | {"num_shared": 3, "unit_width": 7}},
    "everything biased": {
        "attention": HEADS | {"bias": True, "output_bias": True},
        "experts": UNITS
        | {"bias": True, "activation": "clamped_swiglu", "thalamus": {"kind": "softmax", "bias": True}},
    },
    "plain activation": {"experts": UNITS | {"activation": "relu2", "unit_width": 20}},
    "both halves silent": {"experts": UNITS | {"activation": "drelu", "num_shared": 1}},
    "columns": {"experts": None, "columns": {"width": 96, "column_width": 8, "thalamus": {"num_awake": 4}}},
    "columns of 16 that compete": {
        "experts": None,
        "columns": {"width": 96, "column_width": 16, "num_speaking": 3, "bias": True, "thalamus": {"num_awake": 4}},
    },
    "columns behind a router of low rank, and a dense layer": {
        "experts": None,
        "columns": {"width": 80, "column_width": 4, "thalamus": {"num_awake": 12, "rank": 7}},
        "feed_forward": {"width": 37},
        "feed_forwards": ["columns", "dense"],
    },
    "heads normed": {"attention": HEADS | {"qk_norm": "head"}},
    "all normed, clipped": {"attention": HEADS | {"qk_norm": "full", "clip_qkv": 0.7}},
    "window, sinks": {
        "attention": HEADS | {"sliding_window": 9, "sinks": True},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "dense": {"experts": None, "feed_forward": {"width": 37, "bias": True, "activation": "gelu"}},
    "one key head": {"attention": {"num_heads": 10, "num_key_value_heads": 1, "head_dim": 4}},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 48}},
    "dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
        "max_position_embeddings": 16,
    },
    "gates": {"gates": {"layers": [0, 1]}, "experts": UNITS | {"num_shared": 1}},
    "gates, window, sinks, dense": {
        "gates": {"layers": [1]},
        "experts": None,
        "feed_forward": {"width": 37, "bias": True},
        "attention": HEADS | {"sliding_window": 9, "sinks": True, "qk_norm": "head", "output_bias": True},
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "fleeting, a window, sinks, gates": {
        "fleeting": {"intact": 3, "power": 0.8},
        "attention": HEADS | {"sliding_window": 9, "sinks": True},
        "layer_types": ["sliding_attention", "full_attention"],
        "gates": {"layers": [1]},
    },
    "long-term memory": {
        "experts": None,
        "feed_forward": {"width": 37},
        "feed_forwards": ["memory", "dense"],
        "hippocampus": {"num_rows": 144, "num_heads": 3, "num_awake": 5, "key_width": 12},
    },
    "dendrites": {"dendrites": {"num_dendrites": 3, "num_awake": 2}},
    "one dendrite of four, clipped, behind gates": {
        "attention": HEADS | {"qk_norm": "head", "clip_qkv": 0.7},
        "dendrites": {},
        "gates": {"layers": [1]},
        "experts": None,
        "columns": {"width": 96, "column_width": 8, "thalamus": {"num_awake": 4}},
    },
    "dendrites of wide heads beside plain ones": {
        "attention": {"num_heads": 2, "num_key_value_heads": 1, "head_dim": 38},
        "dendrites": {"num_dendrites": 2},
        "mixers": ["attention", "dendrites"],
    },
    "tied, odd sizes": {"tie_word_embeddings": True, "hidden_size": 22, "vocab_size": 67},
}


@pytest.fixture(params=[1, 3], ids="{} threads".format)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As many threads as asked for, however little there is to do."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr("pragnosia.kernels.step.SMALL", 1)
    yield
    torch.set_num_threads(before)


def randomised(model: PragnosiaForCausalLM) -> PragnosiaForCausalLM:
    """Biases, sinks, norms, balances and thresholds that are felt."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *(t for name, t in model.named_buffers() if "balance" in name)):
            if tensor.ndim == 1 or not tensor.any():
                tensor.add_(0.3 * torch.randn_like(tensor))
        for name, tensor in model.named_buffers():
            if "thresholds" in name and "gate" not in name:
                tensor.copy_(torch.linspace(0.8, 0.2, tensor.shape[0])[:, None].expand_as(tensor))
    return model


def both(model: PragnosiaForCausalLM, ids: list[int], prompt: int, awake: float = 1.0) -> tuple[Any, Any, Program]:
    """The last tokens one by one through the modules and through a program, after the same prompt."""
    setting = Setting(awake=awake)
    with torch.inference_mode():
        read = model(torch.tensor([ids[:prompt]]), past_key_values=model.fresh_state(1, len(ids)), setting=setting)
        state = read.past_key_values
        assert writable(model, state)
        program = Program(model, state.fork(), setting)
        for token in ids[prompt:]:
            output = model(torch.tensor([[token]]), past_key_values=state, setting=setting)
            state = output.past_key_values
            likeliest = program(token)
            program.length += 1
        assert likeliest == int(program.logits.argmax())
    return output, state, program


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("awake", [1.0, 0.5])
@pytest.mark.parametrize("dress", CLOTHES)
def test_what_the_modules_compute(dress: str, awake: float, make_model: Make) -> None:
    model = randomised(make_model(**({"max_position_embeddings": 64} | CLOTHES[dress])))
    ids = torch.randint(0, 60, (30,)).tolist()
    output, state, program = both(model, ids, 11, awake)
    torch.testing.assert_close(program.logits, output.logits[:, -1], atol=2e-5, rtol=1e-4)
    assert output.logits.std() > 0.05, "a flat answer proves little"
    for ours, theirs in zip(program.state.layers, state.layers, strict=True):
        assert ours.length == theirs.length == program.state.length == 30
        torch.testing.assert_close(ours.keys[:, :, :30], theirs.keys[:, :, :30], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(ours.values[:, :, :30], theirs.values[:, :, :30], atol=2e-5, rtol=1e-4)
    for mine, routing in zip(program.routings(), output.routings, strict=True):
        assert (mine is None) == (routing is None)
        if mine is None:
            continue
        assert (mine.gate is None) == (routing.gate is None)
        for one, other in ((mine, routing), *([(mine.gate, routing.gate)] if mine.gate else [])):
            assert torch.equal(one.units, other.units)
            torch.testing.assert_close(one.strengths, other.strengths, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(one.scores, other.scores, atol=2e-5, rtol=1e-4)


@pytest.mark.usefixtures("threads")
def test_some_pass_and_some_do_not(make_model: Make) -> None:
    model = randomised(make_model(max_position_embeddings=64, **CLOTHES["gates"]))
    decoder = Decoder(model, 64, trace=Trace())
    decoder.read([1, 2, 3])
    said = list(decoder.speak(40, Sampling()))
    assert decoder.decoding == "compiled"
    assert said == said_by_modules(model, [1, 2, 3], 40)
    assert decoder.trace is not None
    passed = torch.cat([routing.gate.units for step, _ in decoder.trace.steps() for routing in step])
    assert 0.1 < float((passed == 0).float().mean()) < 0.9


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("window", [None, 1500])
def test_a_long_past_is_shared_out(window: int | None, make_model: Make) -> None:
    model = make_model(
        max_position_embeddings=4096,
        attention=HEADS | {"sliding_window": window, "sinks": True},
        layer_types=["sliding_attention" if window else "full_attention"] * 2,
    )
    output, _, program = both(model, torch.randint(0, 200, (2600,)).tolist(), 2595)
    torch.testing.assert_close(program.logits, output.logits[:, -1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dress", [{}, {"dendrites": {"num_dendrites": 2, "num_awake": 2}}], ids=["plain", "dendrites"])
def test_bfloat16_is_as_near_as_the_modules(dress: dict[str, Any], make_model: Make) -> None:
    exact, model = (make_model(hidden_size=64, **dress) for _ in range(2))
    model = model.to(torch.bfloat16)
    exact.load_state_dict(model.float().state_dict())
    model = model.to(torch.bfloat16)
    ids = torch.randint(0, 200, (20,)).tolist()
    truth = both(exact, ids, 10)[0].logits[:, -1]
    output, _, program = both(model, ids, 10)
    ours, theirs = ((logits.float() - truth).norm() for logits in (program.logits, output.logits[:, -1]))
    assert ours < 0.1 * truth.norm()
    assert ours < 1.2 * theirs


def test_steering_is_felt_while_speaking(make_model: Make) -> None:
    model = make_model(experts=UNITS | {"lobes": {"a": 3, "b": 5}})
    decoder = Decoder(model, 64, trace=Trace())
    decoder.read([1, 2, 3])
    words = decoder.speak(20, Sampling())
    for _ in range(4):
        next(words)
    with model.lesion("b"):
        next(words)
    next(words)
    assert decoder._program is not None
    assert decoder.trace is not None
    woken = [torch.cat([routing.units[0] for routing in step if routing]) for step, _ in decoder.trace.steps()]
    assert int(woken[4].max()) < 3
    assert any(int(units.max()) >= 3 for units in (*woken[:4], woken[5]))


def test_a_change_of_weights_is_seen(make_model: Make) -> None:
    model = make_model()
    decoder = Decoder(model, 64)
    decoder.read([1, 2, 3])
    list(decoder.speak(4, Sampling()))
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().roll(1, 0))
    assert list(decoder.speak(6, Sampling())) == said_by_modules(model, decoder.ids[:7], 6)


def said_by_modules(model: PragnosiaForCausalLM, ids: list[int], count: int) -> list[int]:
    said: list[int] = []
    with torch.inference_mode():
        for _ in range(count):
            said.append(int(model(torch.tensor([ids + said])).logits[0, -1].argmax()))
    return said


def hooked(model: PragnosiaForCausalLM) -> Any:
    return model.model.layers[0].mixer.register_forward_hook(lambda *_: None)


def adapted(model: PragnosiaForCausalLM) -> None:
    class Louder(type(model.model.layers[0].mixer.o_proj)):  # type: ignore[misc]
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model.model.layers[0].mixer.o_proj.__class__ = Louder


def in_double(model: PragnosiaForCausalLM) -> None:
    model.double()


@pytest.mark.parametrize("change", [hooked, adapted, in_double])
def test_what_cannot_be_written_runs_as_modules(change: Callable[[Any], Any], make_model: Make) -> None:
    model = make_model()
    change(model)
    decoder = Decoder(model, 64)
    assert not writable(model, decoder.state)
    decoder.read([1, 2, 3])
    assert list(decoder.speak(8, Sampling())) == said_by_modules(model, [1, 2, 3], 8)


@pytest.mark.parametrize("native", [True, False])
def test_the_same_words_with_and_without(native: bool, speaker: Pragnosia, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr("pragnosia.inference.decode.writable", lambda *_: False)
    assert speaker.generate_tokens([5, 6, 7], max_new_tokens=60) == said_by_modules(speaker.model, [5, 6, 7], 60)


def test_an_interrupt_while_choosing_loses_nothing(speaker: Pragnosia, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(speaker.model, 64)
    decoder.read([5, 6, 7])
    words = decoder.speak(20, Sampling(temperature=1.0, seed=1))
    said = [next(words) for _ in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr("pragnosia.inference.sampler.Sampler.__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(words)
    assert decoder.ids == [5, 6, 7, *said]
    assert list(decoder.speak(8, Sampling())) == said_by_modules(speaker.model, [5, 6, 7, *said], 8)


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt
