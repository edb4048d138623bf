"""A long prompt: the bits of one read piece by piece, and every unit read once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia import kernels
from pragnosia.inference.decode import Decoder, Trace
from pragnosia.inference.sampling import Sampling
from pragnosia.inference.scratch import PROMPT_PIECE, prompt_scratch, speaking_scratch
from pragnosia.inference.shelf import open_shelf
from pragnosia.inference.stream import build, make_plan, pool_of
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.units import GIB

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")

PIECE, LENGTH = 8, 45
SHAPES: dict[str, dict[str, Any]] = {
    "sparse": {},
    "sliding": {
        "attention": {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "sliding_window": 11},
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "mixed": {"feed_forwards": ["dense", "experts", "experts"], "feed_forward": {"width": 20}},
    "dense": {"experts": None, "feed_forward": {"width": 20}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits_and_every_unit_once(
    shape: str, make_model: Callable[..., PragnosiaForCausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pragnosia.inference.decode.PROMPT_PIECE", PIECE)
    here = make_model(num_hidden_layers=3, **SHAPES[shape])
    here.save_pretrained(tmp_path)
    shelf = open_shelf(tmp_path)
    there, _ = build(shelf, replace(make_plan(shelf, GIB, interpreter=0), slots=2 if shape == "dense" else 9))
    ids = torch.randint(0, 250, (LENGTH,)).tolist()
    said, traces, states = [], [], []
    for model in (here, there):
        decoder = Decoder(model, 100, trace=Trace())
        decoder.read(ids)
        words = decoder.speak(6, Sampling())
        said.append([next(words)])
        states.append(decoder.state)
        traces.append(decoder.trace)
        if model is there:
            pool: Any = pool_of(there)
            misses = pool.stats().misses
        said[-1].extend(words)
    assert said[0] == said[1]
    assert states[0].length == states[1].length == LENGTH
    for memory, other in zip(*(state.layers for state in states), strict=True):
        assert torch.equal(memory.keys[:, :, :LENGTH], other.keys[:, :, :LENGTH])
        assert torch.equal(memory.values[:, :, :LENGTH], other.values[:, :, :LENGTH])
    pieces = [[routing[layer] for routing in traces[0].routings[:6]] for layer in range(3)]
    woken = 0
    for layer, parts in enumerate(pieces):
        whole = traces[1].routings[0][layer]
        if whole is None:
            assert shape in ("mixed", "dense")
            continue
        assert torch.equal(whole.units, torch.cat([part.units for part in parts]))
        woken += len(whole.units.unique())
    if shape != "dense":
        assert misses == woken, "each unit once"


def test_the_stream_of_a_long_prompt_is_planned(
    make_model: Callable[..., PragnosiaForCausalLM], tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path)
    sizes = open_shelf(tmp_path)
    piece = speaking_scratch(sizes, PROMPT_PIECE)
    assert prompt_scratch(sizes, PROMPT_PIECE) == piece
    assert prompt_scratch(sizes, 4 * PROMPT_PIECE) == piece + 4 * PROMPT_PIECE * 24 * 4
