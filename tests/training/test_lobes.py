"""A run on labelled domains: its stages, whose rows it reads, and what it refuses."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia.data import Batches
from pragnosia.errors import ConfigError, DataError
from pragnosia.inference.loading import load_model
from pragnosia.training.assembly import assemble
from pragnosia.training.configuration import read_config
from pragnosia.training.lobes import Lobes, LobesConfig
from pragnosia.training.progress import Bar
from pragnosia.training.trainer import train

WORDS = {"letters": "abc bcd cde def efg", "numbers": "123 234 345 456 567"}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, words in WORDS.items():
        (folder / f"{name}.txt").write_text("\n<|endoftext|>\n".join([words * 20] * 20), "utf-8")
    return folder


def settings(texts: Path, **changes: Any) -> dict[str, Any]:
    experts = {"num_units": 6, "unit_width": 8, "lobes": {"letters": 3, "numbers": 3}, "thalamus": {"num_awake": 2}}
    return {
        "model": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "max_position_embeddings": 32,
            "attention": {"num_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
            "experts": experts,
        },
        "tokenizer": {"vocab_size": 270},
        "data": {"sources": [str(texts)]},
        "batch": {"batch_size": 4, "sequence_length": 16},
        "optimiser": {"learning_rate": 1e-2},
        "schedule": {"name": "constant", "warmup_steps": 1},
        "lobes": {"experts": 0.5, "routers": 0.25},
        "steps": 4,
        "logging": {"tensorboard": False, "curves": False},
        **changes,
    }


def test_stages_by_shares_of_the_run() -> None:
    config = LobesConfig(supervision=0.2, experts=0.4, routers=0.2)
    told = [config.stage(step, 10) for step in range(10)]
    assert [stage for stage, _ in told] == ["experts"] * 4 + ["routers"] * 2 + ["all"] * 4
    assert [amount for _, amount in told] == pytest.approx([0.2, 0.15, 0.1, 0.05] + [0] * 6)
    assert LobesConfig(experts=0, routers=0).stage(0, 10) == ("all", 0.0)


def test_rows_are_told_apart(texts: Path, tmp_path: Path) -> None:
    config = read_config(settings(texts))
    materials = assemble(config, tmp_path / "run", Bar())
    batches = Batches(materials.corpus, 4, 16, 0)
    lobes = Lobes(config, batches)
    for step in range(3):
        rows = next(batches)
        told = lobes.lesson(step, len(rows))
        for row, lobe in zip(rows, told.lobes, strict=True):
            text = materials.tokenizer.decode(row)
            digits, letters = sum(map(str.isdigit, text)), sum(map(str.isalpha, text.replace("<|endoftext|>", "")))
            assert (digits > letters) == (lobe == "numbers"), text
        assert sorted(told.lobes) == ["letters"] * 2 + ["numbers"] * 2
    assert lobes.lesson(0, 8).lobes == tuple(lobe for lobe in told.lobes for _ in range(2))  # rows cut in two


def test_a_run_is_resumed_in_any_stage(texts: Path, tmp_path: Path) -> None:
    given = settings(texts, checkpoint={"every": 1, "keep": 9})
    train(given, out=tmp_path / "whole")
    held = [load_model(path) for path in sorted((tmp_path / "whole" / "checkpoints").glob("step-*"))]
    moved = [
        {name for name, weight in now.named_parameters() if not weight.equal(before.get_parameter(name))}
        for before, now in itertools.pairwise(held)
    ]
    assert moved[1] == {"model.layers.0.feed_forward.thalamus.weight"}  # the third step: routers alone
    assert len(moved[0]) > 5 < len(moved[2])
    for name in ("step-00000004", "step-00000003"):
        for path in (tmp_path / "whole" / "checkpoints").glob(f"*{name[-1]}"):
            path.rename(tmp_path / f"gone-{path.name}")
    train(given, out=tmp_path / "whole", resume=True)
    last = load_model(tmp_path / "whole")
    assert all(weight.equal(last.get_parameter(name)) for name, weight in held[-1].named_parameters())
    torch.manual_seed(0)


def test_what_cannot_be_taught(texts: Path, tmp_path: Path) -> None:
    def refused(kind: type[Exception], message: str, **changes: Any) -> None:
        with pytest.raises(kind, match=message):
            train(settings(texts, **changes), out=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    one, other = (f"{name}={texts / name}.txt" for name in WORDS)
    model = settings(texts)["model"]
    refused(ConfigError, "unknown domain 'digits'", data={"sources": [one, other.replace("numbers=", "digits=")]})
    refused(DataError, "the data name one domain, 'letters'", data={"sources": [one]})
    refused(DataError, "names no domain", data={"sources": [one, str(texts)]})
    refused(ConfigError, "this model is dense", model=model | {"experts": None, "feed_forward": {"width": 32}})
    more = {**model["experts"], "lobes": {"letters": 2, "numbers": 2, "music": 2}}
    refused(ConfigError, "lobe 'music' has no domain; add music=PATH", model=model | {"experts": more})
    few = {**model["experts"], "lobes": {"letters": 5, "numbers": 1}}
    refused(ConfigError, "lobe 'numbers' has 1 units, and 2 wake", model=model | {"experts": few})
    none = {**model["experts"], "num_units": 1, "lobes": {"letters": 1, "numbers": 1}, "thalamus": {"num_awake": 1}}
    refused(ConfigError, "lobes hold 2 units, num_units is 1", model=model | {"experts": none})
    refused(ConfigError, "lobes learn by backprop, the rule is 'dfa'", rule="dfa")
    refused(ConfigError, "together more than all of them", lobes={"experts": 0.8, "routers": 0.3})
    refused(ConfigError, "lobes.supervision is -1", lobes={"supervision": -1})
    stages = [{"name": "young", "steps": 1}, {"name": "adult"}]
    refused(ConfigError, "both divide the run", stages=stages)
