"""TrainConfig: strict, one line per fault, and `--set` reaches every key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pragnosia.errors import ConfigError
from pragnosia.training.configuration import TrainConfig, read_config


def test_a_mapping_becomes_a_config() -> None:
    config = read_config({"steps": 5, "optimiser": {"learning_rate": "3e-4"}, "model": {"preset": "nano"}})
    assert config.optimiser.learning_rate == pytest.approx(3e-4)
    assert config.num_steps == 5
    assert config.ema is None


def test_what_is_written_can_be_read() -> None:
    config = read_config({"tokens": 1e6, "ema": {"decay": 0.9}, "data": {"sources": {"a": 1.0, "b": 2}}})
    assert read_config(config.write()) == config
    assert config.num_steps == 1_000_000 // config.batch.tokens


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("optimiser.learning_rate=1e-4", "optimiser", "learning_rate", 1e-4),
        ("optimiser.clip=null", "optimiser", "clip", None),
        ("logging.tensorboard=false", "logging", "tensorboard", False),
        ("ema.decay=0.5", "ema", "decay", 0.5),
        ("data.sources=[a, b]", "data", "sources", ["a", "b"]),
        ("optimiser.name=muon", "optimiser", "name", "muon"),
    ],
)
def test_overrides(override: str, section: str, key: str, value: Any) -> None:
    config = read_config({"steps": 1, "ema": None}, [override])
    assert getattr(getattr(config, section), key) == value


def test_overrides_reach_into_the_model_and_do_not_change_their_source() -> None:
    source = {"steps": 1, "model": {"preset": "nano"}}
    config = read_config(source, ["model.experts.num_units=8", "steps=2"])
    assert config.model == {"preset": "nano", "experts": {"num_units": 8}}
    assert source == {"steps": 1, "model": {"preset": "nano"}}
    assert isinstance(config, TrainConfig)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": 1, "optimizer": {}}, "Did you mean 'optimiser'"),
        ({"steps": 1, "optimiser": {"lerning_rate": 1}}, r"optimiser\.learning_rate"),
        ({"steps": 1, "ema": {"decai": 1}}, r"ema\.decay"),
        ({"steps": "many"}, "steps is 'many'"),
        ({"steps": 1, "optimiser": {"name": "sgd"}}, "'adamw', 'adamw8bit' or 'muon'"),
        ({"steps": 1, "precision": "fp8"}, "'fp32' or 'bf16'"),
        ({"steps": 1, "batch": {"batch_size": 0}}, "batch_size is 0"),
        ({"steps": 1, "data": 3}, "data is 3"),
        ({"steps": 1, "tokenizer": {"temperature": 0.5}}, r"tokenizer\.temperature is 0.5"),
        ({"steps": 1, "data": {"sources": []}}, r"data\.sources is empty"),
        ({"steps": 1, "data": {"validation_fraction": 1.0}}, "validation_fraction"),
        ({}, "exactly one of steps and tokens"),
        ({"model": {"preset": "nanno"}}, "unknown preset 'nanno'. Did you mean 'nano'"),
        ({"model": {"presett": "nano"}}, "unknown configuration key 'presett'. Did you mean 'preset'"),
        ({"model": {"num_attention_heads": 2}}, "Did you mean 'attention.num_heads'"),
        ({"steps": 1, "tokens": 1e6}, "exactly one of steps and tokens"),
        ({"tokens": 10}, "a step is 4096 tokens"),
        ({"steps": 1, "schedule": {"first_length": 100, "length_warmup_steps": 9}}, "first_length is 100"),
    ],
)
def test_every_fault_is_one_line(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        read_config(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["steps", "=3", "steps.x=1", "optimiser.name={", "nonsense=1"])
def test_bad_overrides(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config({"steps": 1}, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "\x00", ""])
def test_files_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "nowhere.yaml")
