"""Gated layers, however a model is held: in memory, on disk, packed, written as a program, and on the dial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia import Pragnosia, PragnosiaForCausalLM, kernels
from pragnosia.checkpoints.blueprint import blueprint
from pragnosia.inference.budget import make_plan
from pragnosia.inference.decode import Decoder, Trace
from pragnosia.inference.sampler import Sampling
from pragnosia.inference.shelf import open_shelf
from pragnosia.inference.stream import build
from pragnosia.measure.dial import mechanisms
from pragnosia.model.attention import Attention
from pragnosia.model.setting import Setting
from pragnosia.quantisation.packing import pack_model
from pragnosia.tuning.configuration import LoraConfig
from pragnosia.tuning.lora import attach
from pragnosia.tuning.recompute import recompute
from pragnosia.units import GIB

pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
Make = Callable[..., PragnosiaForCausalLM]
PROMPT = list(range(9))
DENSE = {"experts": None, "feed_forward": {"width": 40}}
SHARED = {"experts": {"num_units": 8, "unit_width": 8, "num_shared": 1, "thalamus": {"num_awake": 3}}}


def gated(make_model: Make, **dress: Any) -> PragnosiaForCausalLM:
    """Four layers, of which two have gates that have seen tokens."""
    model = make_model(**({"num_hidden_layers": 4, "gates": {"layers": [1, 2]}, "hidden_size": 32} | dress))
    with torch.no_grad():
        for _ in range(20):
            model.rebalance(model(torch.randint(0, 60, (4, 40))).routings)
    return model


def spoken(model: Any, gates: float = 1.0, count: int = 30) -> tuple[list[int], float, str]:
    """Words, the share of those that passed a gate, and what computed them."""
    decoder = Decoder(model, 64, Setting(gates=gates), Trace())
    decoder.read(PROMPT)
    words = list(decoder.speak(count, Sampling()))
    assert decoder.trace is not None
    passed = [routing.gate.units for step, _ in decoder.trace.steps() for routing in step if routing and routing.gate]
    return words, float((torch.cat(passed) == 0).float().mean()), decoder.decoding


@pytest.mark.parametrize("dress", [DENSE, SHARED], ids=["dense", "shared"])
def test_fewer_pass_by_the_dial_and_the_words_stay_the_modules(
    dress: dict[str, Any], make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shares = gated(make_model, **dress), []
    compiled = [spoken(model, gates) for gates in (1.0, 0.6, 0.2)]
    monkeypatch.setattr("pragnosia.inference.decode.writable", lambda *_: False)
    for (words, share, decoding), gates in zip(compiled, (1.0, 0.6, 0.2), strict=True):
        assert (decoding, words, share) == ("compiled", *spoken(model, gates)[:2])
        shares.append(share)
    assert 1 > shares[0] > shares[1] > shares[2] > 0


def test_a_mixer_without_a_program_speaks_by_modules(make_model: Make) -> None:
    class Own(Attention):
        """As the one it stands for, but nobody knows that."""

    model: Any = gated(make_model)
    for layer in model.model.layers:
        layer.mixer.__class__ = Own
    words, share, decoding = spoken(model)
    assert len(words) == 30
    assert 0 < share < 1
    assert decoding == "modules"


def streamed(folder: Path, slots: int) -> PragnosiaForCausalLM:
    shelf = open_shelf(folder)
    return build(shelf, replace(make_plan(shelf, GIB, interpreter=0), slots=slots))[0]


@pytest.mark.parametrize(
    "dress",
    [DENSE, SHARED, {**DENSE, "dendrites": {}}, {**SHARED, "dendrites": {}}],
    ids=["layers", "units", "layers with dendrites", "units beside dendrites"],
)
def test_from_disk_the_words_are_the_same(dress: dict[str, Any], make_model: Make, tmp_path: Path) -> None:
    model = gated(make_model, **dress)
    model.save_pretrained(tmp_path)
    assert spoken(streamed(tmp_path, 3 if "feed_forward" in dress else 12))[:2] == spoken(model)[:2]


@torch.no_grad()
@pytest.mark.parametrize("dress", [DENSE, SHARED], ids=["dense", "shared"])
def test_packed_the_gates_stay_as_they_were(dress: dict[str, Any], make_model: Make, tmp_path: Path) -> None:
    model = gated(make_model, **dress)
    model.save_pretrained(tmp_path / "model")
    pack_model(blueprint(tmp_path / "model"), tmp_path / "packed", "int8")
    packed = Pragnosia.from_pretrained(tmp_path / "packed").model
    for ours, theirs in zip(model.model.layers, packed.model.layers, strict=True):
        if ours.gate is not None:
            assert torch.equal(ours.gate.weight, theirs.gate.weight)
            assert torch.equal(ours.gate.thresholds, theirs.gate.thresholds)
    near = [one(torch.tensor([PROMPT])).logits for one in (model, packed)]
    assert float((near[0] - near[1]).norm() / near[0].norm()) < 0.2
    assert spoken(packed)[2] == "compiled"


@pytest.mark.parametrize("dress", [DENSE, SHARED], ids=["dense", "shared"])
def test_adapters_learn_the_same_where_layers_are_computed_again(dress: dict[str, Any], make_model: Make) -> None:
    slopes = []
    for again in (False, True):
        model: Any = gated(make_model, **dress).train()
        torch.manual_seed(1)
        attach(model, LoraConfig(rank=2, targets=("attention", "dense") if dress is DENSE else ("attention", "units")))
        if again:
            recompute(model)
        ids = torch.tensor([PROMPT, PROMPT[::-1]])
        embedded = model.model.embed_tokens(ids).requires_grad_()
        model(inputs_embeds=embedded, labels=ids, use_cache=False).loss.backward()
        slopes.append([p.grad for p in model.parameters() if p.requires_grad])
    for kept, found in zip(*slopes, strict=True):
        torch.testing.assert_close(found, kept)


def test_the_dial_has_gates_to_turn(make_model: Make) -> None:
    units, gates, exits = mechanisms(gated(make_model, **DENSE), None)
    assert units == exits == []
    assert gates
    assert all(setting == Setting(gates=setting.gates) and setting.gates < 1 for setting in gates)
