"""`grow` and `prune`: what they make, what they say, and what they refuse."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pragnosia.inference.loading import load_model

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def theirs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another family's mixture, as it lies, with a tokenizer."""
    folder = tmp_path_factory.mktemp("theirs") / "mixtral"
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "mixtral",
        vocab_size=300,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=6,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, folder / name)
    return folder


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_grown_in_every_way_at_once(
    run: Run, model: Path, theirs: Path, story: Path, tmp_path: Path, whose: str
) -> None:
    source, out = (model if whose == "ours" else theirs), tmp_path / "out"
    had = load_model(source).config
    asked = ("--units", "2x", "--layers", "+1", "--width", "1.5x", "--data", story, "--json")
    values = run("grow", source, out, *asked).values
    grown = load_model(out).config
    assert grown.units.num_units == 2 * had.units.num_units
    assert grown.num_hidden_layers == had.num_hidden_layers + 1
    assert grown.hidden_size == had.hidden_size * 1.5
    assert values["total_parameters"] > 2 * values["total_parameters_before"]
    assert values["largest_logit_change"] <= 1e-5 * max(1.0, values["largest_logit"])
    assert values["bits_per_byte"] == pytest.approx(values["bits_per_byte_before"], rel=1e-5)
    assert values["file_bytes"] == sum(file.stat().st_size for file in out.glob("*.safetensors"))
    assert load_model(out).dtype is load_model(source).dtype
    assert run("generate", out, "Once", "--max-new-tokens", 3, "--json").values["tokens"] == 3


def test_a_table_for_people(run: Run, model: Path, story: Path, tmp_path: Path) -> None:
    said = run("grow", model, tmp_path / "more", "--units", "+4").out
    assert "parameters" in said
    assert "bits per byte" not in said
    said = run("prune", tmp_path / "more", tmp_path / "less", "--keep", 8, "--by", "magnitude", "--data", story).out
    assert "8 in each sparse layer, before 12" in said
    assert "bits per byte" in said


def test_twins_cost_more_and_sleepers_nothing(run: Run, model: Path, tmp_path: Path) -> None:
    asleep = run("grow", model, tmp_path / "asleep", "--units", "2x", "--json").values
    twins = run("grow", model, tmp_path / "twins", "--units", "2x", "--twins", "--json").values
    assert asleep["active_parameters"] < twins["active_parameters"]
    assert twins["largest_logit_change"] < 1e-5 * max(1.0, twins["largest_logit"])


def test_newborns_may_have_a_lobe_of_their_own(run: Run, model: Path, tmp_path: Path) -> None:
    run("grow", model, tmp_path / "out", "--units", "+4", "--lobe", "new")
    lobes = load_model(tmp_path / "out").config.units.lobes
    assert dict(lobes) == dict(load_model(model).config.units.lobes) | {"new": 4}


def test_stacking_tells_its_jump(run: Run, model: Path, tmp_path: Path) -> None:
    values = run("grow", model, tmp_path / "out", "--layers", "+2", "--stack", "--json").values
    assert values["largest_logit_change"] > 1e-4


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_pruned_and_recovered(run: Run, model: Path, theirs: Path, story: Path, tmp_path: Path, whose: str) -> None:
    source, out = (model if whose == "ours" else theirs), tmp_path / "out"
    recovery = ("--recover", 20, "--learning-rate", "3e-3")
    values = run("prune", source, out, "--keep", 0.5, "--data", story, *recovery, "--json").values
    assert values["units"] == values["units_before"] / 2 == load_model(out).config.units.num_units
    assert values["total_parameters"] < values["total_parameters_before"]
    assert values["file_bytes"] < values["file_bytes_before"]
    assert values["bits_per_byte"] < values["bits_per_byte_unrecovered"]
    assert run("generate", out, "Once", "--max-new-tokens", 3, "--json").values["tokens"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_is_said_before_anything_is_loaded(
    run: Run, at_once: Run, model: Path, story: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    at_once("grow", model, out).refused("say what shall grow")
    run("grow", model, out, "--units", "two").refused("--units is 'two'; expected 2x or +8")
    run("grow", model, out, "--layers", "2x").refused("say how many more, as +2")
    run("grow", model, out, "--twins", "--layers", "+1").refused("--twins says how units grow")
    run("grow", model, out, "--rows", "3x").refused("give a square")
    run("grow", model, out, "--lobe", "new", "--layers", "+1").refused("--lobe says where new units stand")
    run("grow", model, out, "--lobe", "new", "--units", "2x", "--twins").refused("--units +8 with it, and no --twins")
    at_once("prune", model, out, "--keep", "0.5").refused("give --data TEXT")
    run("prune", model, out, "--keep", "half", "--by", "magnitude").refused("--keep is 'half'")
    run("prune", model, out, "--keep", "0.5", "--by", "luck").refused("'luck'")
    run("prune", model, out, "--by", "magnitude").refused("say how many units stay")
    run("prune", model, out, "--by", "dead", "--keep", "0.5", "--data", story).refused("leave --keep out")
    assert not list(tmp_path.iterdir())


def test_what_a_model_cannot_be_made_to_be(run: Run, model: Path, story: Path, tmp_path: Path) -> None:
    out, packed = tmp_path / "out", tmp_path / "packed"
    run("pack", model, packed, "--format", "int4")
    run("grow", packed, out, "--units", "2x").refused("is packed", "change the model it was made from")
    run("prune", packed, out, "--keep", 0.5, "--by", "magnitude").refused("is packed")
    run("prune", model, out, "--keep", 1, "--by", "magnitude").refused("1 unit would be left, and 2 wake")
    run("grow", model, out, "--width", "1.01x").refused("choose a factor that makes it whole")
    run("grow", model, out, "--rows", "4x").refused("no long-term memory")
    run("grow", tmp_path / "nowhere", out, "--units", "2x").refused("nowhere")
    run("prune", model, packed, "--keep", 0.5, "--by", "magnitude").refused("already exists")
    assert not out.exists()
