"""A dense model whose layers pass speaks through the compiled step: with the very bits of the model in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia import Pragnosia, PragnosiaForCausalLM, kernels
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.errors import CheckpointError
from pragnosia.inference.budget import make_plan
from pragnosia.inference.decode import Decoder
from pragnosia.inference.exits import Draft
from pragnosia.inference.ladder import Ladder
from pragnosia.inference.layers import OnDisk, coming_and_going
from pragnosia.inference.program import Program, writable
from pragnosia.inference.sampler import Sampling
from pragnosia.inference.shelf import open_shelf
from pragnosia.inference.stream import build, pool_of
from pragnosia.quantisation.index import RESIDENT
from pragnosia.quantisation.packing import pack_model
from pragnosia.units import GIB

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
Make = Callable[..., PragnosiaForCausalLM]

LAYERS = 5
DENSE: dict[str, Any] = {
    "num_hidden_layers": LAYERS,
    "experts": None,
    "feed_forward": {"width": 44, "bias": True, "activation": "gelu"},
    "attention": {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "bias": True, "qk_norm": "head"},
}
STORED = ("float32", "bfloat16", "int8", "int4", "nf4", "bf16-2:4")
CASES = [*((stored, {}) for stored in STORED), *((stored, {"dendrites": {}}) for stored in STORED[1:3])]


@pytest.fixture(params=[1, 3], ids="{} threads".format)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As many threads as asked for, however little there is to do."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr("pragnosia.kernels.step.SMALL", 1)
    yield
    torch.set_num_threads(before)


def saved(make_model: Make, folder: Path, stored: str = "float32", **dress: Any) -> Path:
    """A dense model on disk, with biases and norms that are felt; as it lies, or packed."""
    model = make_model(**DENSE | dress)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 1:
                tensor.add_(0.3 * torch.randn_like(tensor))
    model.to(torch.float32 if stored == "float32" else torch.bfloat16).save_pretrained(folder / "model")
    if stored in ("float32", "bfloat16"):
        return folder / "model"
    pack_model(blueprint(folder / "model"), folder / stored.replace(":", ""), stored)
    return folder / stored.replace(":", "")


def loaded(folder: Path, slots: int) -> Any:
    """With so many layers in memory; with all of them nothing comes or goes."""
    shelf = open_shelf(folder)
    model = build(shelf, replace(make_plan(shelf, GIB, interpreter=0), slots=slots))[0]
    assert isinstance(model.model.layers[0].mixer, OnDisk) == (slots < LAYERS)
    return model


def program_of(model: Any, prompt: list[int]) -> Program:
    with torch.inference_mode():
        state = model(torch.tensor([prompt]), past_key_values=model.fresh_state(1, 60)).past_key_values
    assert writable(model, state)
    return Program(model, state)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("stored", "dress"), CASES, ids=str)
def test_the_bits_of_the_model_in_memory(stored: str, dress: dict[str, Any], make_model: Make, tmp_path: Path) -> None:
    folder = saved(make_model, tmp_path, stored, **dress)
    ids = torch.randint(0, 250, (20,)).tolist()
    here = program_of(loaded(folder, LAYERS), ids[:9])
    there = [program_of(loaded(folder, slots), ids[:9]) for slots in (2, 3, 4)]
    for token in ids[9:]:
        winner = here(token)
        here.length += 1
        for program in there:
            assert program(token) == winner
            assert torch.equal(program.logits, here.logits)
            program.length += 1
    assert here.logits.std() > 0.05, "a flat answer proves little"
    for program in there:
        for ours, theirs in zip(program.state.layers, here.state.layers, strict=True):
            assert torch.equal(ours.keys[:, :, :20], theirs.keys[:, :, :20])
            assert torch.equal(ours.values[:, :, :20], theirs.values[:, :, :20])


@pytest.mark.parametrize("slots", [2, 3, 4])
def test_a_layer_that_passes_is_read_once_a_token(slots: int, make_model: Make, tmp_path: Path) -> None:
    model = loaded(saved(make_model, tmp_path), slots)
    pool: Any = pool_of(model)
    program = program_of(model, [1, 2, 3])
    program(4)
    before, passing = pool.stats(), LAYERS - (slots - 2)
    for _ in range(6):
        program.length += 1
        program(5)
    after = pool.stats()
    assert after.misses - before.misses == 6 * passing, "of the next token's layers two are on their way"
    assert after.hits - before.hits == 6 * (LAYERS - passing)


def test_a_whole_answer_and_what_follows_it(make_model: Make, tmp_path: Path) -> None:
    folder = saved(make_model, tmp_path, "int8")
    told = []
    for slots in (LAYERS, 2, 4):
        decoder = Decoder(loaded(folder, slots), 100)
        for given in ([1, 2, 3, 4], [5, 6, 7], [8]):
            decoder.read(given)
            list(decoder.speak(15, Sampling()))
            assert decoder.decoding == "compiled"
        told.append((decoder.ids, decoder.state))
    for ids, state in told[1:]:
        assert ids == told[0][0]
        for ours, theirs in zip(state.layers, told[0][1].layers, strict=True):
            assert torch.equal(ours.keys[:, :, : state.length], theirs.keys[:, :, : state.length])  # type: ignore[union-attr]


def test_within_a_budget_the_words_are_the_same(make_model: Make, tmp_path: Path) -> None:
    folder = saved(make_model, tmp_path, "bfloat16")
    here = Pragnosia(loaded(folder, LAYERS)).generate_tokens([1, 2, 3], max_new_tokens=40)
    assert Pragnosia(loaded(folder, 2)).generate_tokens([1, 2, 3], max_new_tokens=40) == here


@pytest.mark.usefixtures("threads")
def test_tokens_climb_through_layers_that_pass(make_model: Make, tmp_path: Path) -> None:
    folder = saved(make_model, tmp_path, "int4")
    logits = []
    for slots in (LAYERS, 2, 4):
        model = loaded(folder, slots)
        with torch.inference_mode():
            state = model(torch.tensor([[1, 2, 3]]), past_key_values=model.fresh_state(1, 60)).past_key_values
        ladder = Ladder(model, state)
        for token, layer in ((4, LAYERS), (5, 3), (6, 3), (7, 1)):
            ladder.enter(token, layer, head=False)
        ladder.lift(3)
        ladder.enter(8, 2, head=False)
        ladder.lift(LAYERS, heads=2)
        logits.append(ladder.logits[:2].clone())
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_drafts_say_the_same_words(make_model: Make, tmp_path: Path) -> None:
    folder = saved(make_model, tmp_path, "bfloat16")
    plain = Pragnosia(loaded(folder, LAYERS)).generate_tokens([1, 2, 3], max_new_tokens=30)
    for slots in (2, 4):
        speaker = Pragnosia(loaded(folder, slots))
        speaker.draft = Draft(layer=2, confidence=0.0)
        assert speaker.generate_tokens([1, 2, 3], max_new_tokens=30) == plain


def test_a_layer_that_cannot_be_read_ends_the_answer(make_model: Make, tmp_path: Path) -> None:
    folder = saved(make_model, tmp_path, "int8")
    model, file = loaded(folder, 3), folder / RESIDENT
    whole = file.read_bytes()
    plain = Pragnosia(loaded(folder, LAYERS)).generate_tokens([1, 2, 3], max_new_tokens=12)
    decoder = Decoder(model, 60)
    decoder.read([1, 2, 3])
    words = decoder.speak(12, Sampling())
    said = [next(words) for _ in range(4)]
    torn = bytearray(whole)
    torn[open_shelf(folder).layers()[3][0].extents[0][1] + 5] ^= 255
    file.write_bytes(torn)
    with pytest.raises(CheckpointError, match=r"sparse layer 3.*checksum is wrong.*what was said so far stays"):
        said += list(words)
    file.write_bytes(whole)
    said += decoder.speak(12 - len(said), Sampling())
    assert said == plain


def test_two_texts_at_once_share_the_slots(make_model: Make, tmp_path: Path) -> None:
    folder = saved(make_model, tmp_path)
    plain = [Pragnosia(loaded(folder, LAYERS)).generate_tokens([first, 2], max_new_tokens=20) for first in (1, 3)]
    speaker = Pragnosia(loaded(folder, 3))
    programs = [program_of(speaker.model, [first]) for first in (1, 3)]

    def spoken(program: Program) -> list[int]:
        said = [2]
        for _ in range(20):
            said.append(program(said[-1]))
            program.length += 1
        return said[1:]

    with ThreadPoolExecutor(2) as both:
        assert list(both.map(spoken, programs)) == plain


def test_what_learns_is_not_written_down(make_model: Make, tmp_path: Path) -> None:
    model = loaded(saved(make_model, tmp_path), 3)
    state = model.fresh_state(1, 10)
    assert writable(model, state)
    weights = coming_and_going(model)[2]
    weights.take(weights.names[0])
    assert not writable(model, state)
