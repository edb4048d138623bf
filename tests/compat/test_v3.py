"""The names of v3 answer from the model that stands behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia import PragnosiaForCausalLM
from pragnosia.compat.v3 import (
    BrainInspiredTrainingSystem,
    create_brain_inspired_model,
    get_consciousness_state,
    get_memory_stats,
)
from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.model.presets import preset
from pragnosia.training.progress import Silent

TALE = "The old cat slept by the fire. A red king saw snow in Rome, and said nothing of it to the queen.\n" * 120
SMALL: dict[str, Any] = {
    "hippocampus": {"num_rows": 64, "num_heads": 2, "num_awake": 2, "key_width": 8},
    "working_memory": {"layers": [1], "num_slots": 6, "segment": 4, "num_heads": 2, "head_dim": 8},
    "workspace": {"layers": [2], "num_slots": 3, "segment": 4, "num_heads": 2, "head_dim": 8},
    "max_position_embeddings": 64,
}


@pytest.fixture
def model() -> PragnosiaForCausalLM:
    torch.manual_seed(0)
    return create_brain_inspired_model(61, 32, 3, **SMALL).eval()


def test_the_default_is_the_preset() -> None:
    with torch.device("meta"):
        made = create_brain_inspired_model().config.to_dict()
    assert made == preset("brain-lm").to_dict() | {"architectures": made["architectures"]}
    with torch.device("meta"):
        other = create_brain_inspired_model(vocab_size=256, dim=512, num_layers=6)
    assert (other.config.vocab_size, other.config.hidden_size, other.config.num_hidden_layers) == (256, 512, 6)
    with torch.device("meta"):
        spiking = create_brain_inspired_model(spiking=True).config.to_dict()
    assert spiking == preset("brain-lm-spiking").to_dict() | {"architectures": spiking["architectures"]}
    for layers in (1, 2, 3):
        with torch.device("meta"):
            assert create_brain_inspired_model(61, 32, layers).config.num_hidden_layers == layers


def test_memory_fills_as_it_reads(model: PragnosiaForCausalLM) -> None:
    nothing = get_memory_stats(model)
    assert (nothing["short_term_slots"], nothing["long_term_rows"]) == (6, 64)
    assert nothing["short_term_usage"] is None
    short, longer = get_memory_stats(model, [1, 2, 3]), get_memory_stats(model, list(range(1, 41)))
    assert short["short_term_usage"] == 0, "no segment has ended"
    assert get_memory_stats(model, [1, 2, 3, 4])["short_term_usage"] == pytest.approx(4 / 6)
    assert longer["short_term_usage"] == 1
    seen = set[int]()
    hook = model.model.hippocampus.register_forward_pre_hook(lambda _, given: seen.update(given[0].flatten().tolist()))
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    hook.remove()
    assert short["long_term_usage"] == len(seen) / 64
    assert short["long_term_usage"] <= longer["long_term_usage"] <= 1


def test_what_it_is_conscious_of_is_the_workspace(model: PragnosiaForCausalLM) -> None:
    ids = list(range(1, 20))
    told = get_consciousness_state(model, ids)
    assert told == model.workspace_state(ids).to_dict()
    assert set(told) == {"awareness", "attention", "memory", "intention", "layers"}
    assert told != get_consciousness_state(model, ids[::-1]), "it depends on the order of the words"
    with pytest.raises(ConfigError, match="no workspace"):
        get_consciousness_state(create_brain_inspired_model(61, 32, 3, **SMALL | {"workspace": None}), ids)
    with pytest.raises(ConfigError, match="reads token ids"):
        get_consciousness_state(model, "words")


def test_a_system_trains_speaks_and_is_taught(tmp_path: Path) -> None:
    (tmp_path / "tale.txt").write_text(TALE, "utf-8")
    system = BrainInspiredTrainingSystem(280, 32, 3, out=tmp_path / "run", **SMALL)
    with pytest.raises(CheckpointError, match="no trained model yet"):
        system.generate_text("The")
    with pytest.raises(ConfigError, match="list of texts by name"):
        system.train([torch.zeros(2, 2)])  # type: ignore[list-item]
    report = system.train(
        [str(tmp_path / "tale.txt")],
        steps=3,
        reporter=Silent(),
        batch={"batch_size": 2, "sequence_length": 32},
        logging={"tensorboard": False, "curves": False},
    )
    assert report.steps == 3
    assert isinstance(system.generate_text("The old", max_length=4, seed=1), str)
    assert system.get_memory_stats("The old cat slept.")["short_term_usage"] > 0
    assert system.get_consciousness_state("The old cat slept by the fire.")["layers"]
    assert system.get_memory_stats()["episodes"] == 0
    system.speaker.teach("Queen Ada lives in Rome.")
    assert system.get_memory_stats()["episodes"] == 1


def test_impossible_shapes() -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        create_brain_inspired_model(0, 32, 3)
