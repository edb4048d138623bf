"""Every configuration in configs/ is one that can be run; the smallest of them trains."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from pragnosia.data import Mixture
from pragnosia.errors import DataError
from pragnosia.learning import learning_rule
from pragnosia.measure.accounting import account
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.spiking.neurogen import NeuroGenForCausalLM
from pragnosia.spiking.neurogen_configuration import NeuroGenConfig
from pragnosia.training.assembly import make_rule, model_config, needed_memory, shape_of
from pragnosia.training.configuration import read_config
from pragnosia.training.minds import spiking_parameters
from pragnosia.training.trainer import train

BRAINS = ("neurogen", "neurogen-language")  # wired, not trained: tests/spiking
CONFIGS = sorted(path for path in (Path(__file__).parents[1] / "configs").glob("*.yaml") if path.stem not in BRAINS)
CONFIGS = [path for path in CONFIGS if path.stem != "coincidence"]  # no steps: tests/apps/test_one_pass.py trains it
SPIKING = [path for path in CONFIGS if path.stem.startswith("neurogen-")]
CONFIGS = [path for path in CONFIGS if path not in SPIKING]
BILINGUAL = [path for path in CONFIGS if path.stem.startswith("braingpt-") and path.stem != "braingpt-nano"]


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as the bilingual configurations expect it."""
    chance = random.Random(0)
    for name, syllables in (("en", ["ba", "con", "di", "gra", "lo"]), ("ko", list("가나다라마"))):
        (tmp_path / f"text_{name}").mkdir()
        words = ["".join(chance.choices(syllables, k=3)) for _ in range(60)]
        for part in ("a.train", "b.train", "c.valid"):
            lines = [" ".join(chance.choices(words, k=30)) for _ in range(60)]
            (tmp_path / f"text_{name}" / f"{part}.txt").write_text("\n<|endoftext|>\n".join(lines))
    monkeypatch.setenv("PRAGNOSIA_DATA", str(tmp_path))
    return tmp_path


def test_there_are_some() -> None:
    assert {"braingpt-nano", "demo", "nano", "small"} <= {path.stem for path in CONFIGS}
    assert [path.stem.removeprefix("braingpt-") for path in BILINGUAL] == ["large", "medium", "small", "xlarge"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_can_be_run(path: Path) -> None:
    config = read_config(path)
    shape = model_config(config)
    assert isinstance(shape, PragnosiaConfig)
    counted = account(shape)  # builds the model without storage
    assert counted.active_parameters <= counted.total_parameters
    assert shape.max_position_embeddings >= config.batch.sequence_length
    assert config.num_steps > config.schedule.warmup_steps + config.schedule.length_warmup_steps
    learning_rule(config.rule)


@pytest.mark.parametrize("path", SPIKING, ids=lambda path: path.stem)
def test_a_spiking_configuration_can_be_run(path: Path) -> None:
    config = read_config(path)
    shape = shape_of(config)
    assert isinstance(shape, NeuroGenConfig)
    with torch.device("meta"):
        model = NeuroGenForCausalLM._from_config(shape)
    assert spiking_parameters(shape) == sum(weight.numel() for weight in model.parameters())
    assert (path.stem in {"neurogen-nano", "neurogen-lines"}) == (spiking_parameters(shape) <= 250_000)
    assert needed_memory(config, shape).total > 4 * spiking_parameters(shape)
    assert config.num_steps > config.schedule.warmup_steps
    make_rule(config)


@pytest.mark.parametrize("path", BILINGUAL, ids=lambda path: path.stem)
def test_a_brain_is_its_preset_and_learns_two_languages(path: Path) -> None:
    config = read_config(path)
    assert config.model == {"preset": path.stem}
    assert model_config(config).vocab_size == config.tokenizer.vocab_size
    assert config.tokenizer.temperature is not None
    assert isinstance(config.data.sources, dict)
    assert sum(config.data.sources.values()) == pytest.approx(1)
    assert len(config.data.sources) == 2


def test_other_columns_in_a_preset() -> None:
    shape = model_config(
        read_config({"model": {"preset": "braingpt-small", "columns": {"column_width": 32}}, "steps": 1})
    )
    assert shape.columns is not None
    assert (shape.columns.num_units, shape.columns.thalamus.num_awake) == (128, 6)
    assert shape.columns.lobes == {"cortex": 128}, "the preset's quarters would no longer add up"


def test_moments_in_eight_bits_are_counted_so() -> None:
    base = {"model": {"preset": "braingpt-xlarge"}, "steps": 1, "batch": {"batch_size": 1, "sequence_length": 64}}
    weights = 4 * account(model_config(read_config(base))).total_parameters
    for name, moments in (("adamw", 2), ("muon", 1), ("adamw8bit", 0.5)):
        config = read_config(base | {"optimiser": {"name": name}})
        assert needed_memory(config, model_config(config)).parts["optimiser"] == moments * weights


def test_a_missing_source_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = next(path for path in BILINGUAL if path.stem.endswith("small"))
    monkeypatch.delenv("PRAGNOSIA_DATA", raising=False)
    with pytest.raises(DataError, match=r"PRAGNOSIA_DATA, which is not set; .*--data") as caught:
        train(small, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("PRAGNOSIA_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"no file matches .*text_en"):
        train(small, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_smallest_brain_trains(texts: Path) -> None:
    nano = next(path for path in CONFIGS if path.stem == "braingpt-nano")
    small = read_config(next(path for path in BILINGUAL if path.stem.endswith("small")))
    shape = model_config(read_config(nano))
    assert shape.columns is not None
    assert shape.columns.thalamus.num_awake / shape.columns.num_units <= 0.05
    assert shape.dendrites is not None
    assert shape.exits is not None
    sources = {name.removesuffix(".xz"): weight for name, weight in dict(small.data.sources).items()}
    report = train(
        nano,
        out=texts / "run",
        overrides=[
            *(f"data.{key}={value}" for key, value in (("sources", sources), ("validation_fraction", 0.1))),
            *("tokenizer.temperature=3", "tokenizer.vocab_size=320", "model.vocab_size=320"),
            *("batch.batch_size=2", "batch.sequence_length=32", "steps=4", "schedule.warmup_steps=1"),
            *("logging.tensorboard=false", "logging.curves=false", "logging.validate_every=4"),
        ],
    )
    assert report.steps == 4
    assert report.bits_per_byte < 8
    assert len(Mixture.parse(sources).sources) == 2
