"""`start`: a run begins with a model that is there, with its tokenizer; a resumed one goes on from its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia.data import Texts, train_tokenizer
from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.inference.loading import load_model
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.training.compare import compare
from pragnosia.training.trainer import train

STORY = "A brain that is there already learns a little more, and then a little more again.\n" * 60


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("there")
    train_tokenizer(Texts([STORY], "story"), 280, folder)
    torch.manual_seed(3)
    shape: Any = {"attention": {"num_heads": 2, "num_key_value_heads": 1, "head_dim": 8}, "feed_forward": {"width": 32}}
    config = PragnosiaConfig(vocab_size=280, hidden_size=16, num_hidden_layers=1, max_position_embeddings=64, **shape)
    PragnosiaForCausalLM(config).save_pretrained(folder)
    return folder


def settings(there: Path, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    text = tmp_path / "story.txt"
    text.write_text(STORY, "utf-8")
    return {
        "start": str(there),
        "data": {"sources": [str(text)]},
        "batch": {"batch_size": 2, "sequence_length": 32},
        "schedule": {"warmup_steps": 1},
        "optimiser": {"learning_rate": 1e-9, "weight_decay": 0.0},
        "steps": 2,
        "logging": {"tensorboard": False, "curves": False},
        **changes,
    }


def test_a_run_begins_with_the_weights(there: Path, tmp_path: Path) -> None:
    train(settings(there, tmp_path), out=tmp_path / "run")
    old, new = load_model(there), load_model(tmp_path / "run")
    for name, weight in old.state_dict().items():  # at a rate that moves nothing
        torch.testing.assert_close(new.state_dict()[name], weight, atol=1e-7, rtol=0)
    assert (tmp_path / "run" / "tokenizer.json").read_text() == (there / "tokenizer.json").read_text()


def test_a_resumed_run_does_not_begin_again(there: Path, tmp_path: Path) -> None:
    given = settings(there, tmp_path, optimiser={"learning_rate": 1e-2}, schedule={"name": "constant"})
    train(given | {"steps": 4}, out=tmp_path / "whole")
    train(given | {"steps": 2}, out=tmp_path / "parts")
    train(given | {"steps": 4}, out=tmp_path / "parts", resume=True)
    whole, parts = (load_model(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(weight.equal(parts[name]) for name, weight in whole.items())


def test_what_cannot_be_begun_with(there: Path, tmp_path: Path) -> None:
    given = settings(there, tmp_path)
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="start and model both say"):
        train(given | {"model": {"preset": "nano"}}, out=out)
    with pytest.raises(ConfigError, match=r"the model at .* holds 64 tokens; shorten it"):
        train(given | {"batch": {"sequence_length": 128}}, out=out)
    with pytest.raises(CheckpointError, match="no model directory at"):
        train(given | {"start": str(tmp_path / "none")}, out=out)
    with pytest.raises(ConfigError, match="has a start; what is compared begins from nothing"):
        compare([given], out=tmp_path / "compared")
    assert not out.exists()
