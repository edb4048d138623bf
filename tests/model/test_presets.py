"""Presets: their names say what they weigh."""

from __future__ import annotations

import pytest
import torch

from pragnosia.errors import ConfigError
from pragnosia.measure.accounting import account
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.presets import LOBES, PRESETS, preset
from pragnosia.units import format_count

BRAINS = {name: shape for name, shape in PRESETS.items() if name.startswith("braingpt-")}
OTHERS = [name for name in PRESETS if name not in BRAINS and not name.startswith("brain-lm")]


@pytest.mark.parametrize("name", OTHERS)
def test_a_preset_weighs_what_its_name_says(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        model = PragnosiaForCausalLM(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    if name[0].isdigit():
        assert total == pytest.approx(float(name.rstrip("b")) * 1e9, rel=0.15), format_count(total)
    asleep = config.experts.num_units - config.experts.thalamus.num_awake
    active = total - config.num_hidden_layers * asleep * model.model.layers[0].feed_forward.bank.up[0].numel() * 1.5
    assert active < total / 2 or name in ("nano", "small")
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


# Of Brain-Inspired GPT: layers, width, heads.
SEED = {"small": (6, 512, 8), "medium": (12, 1024, 16), "large": (24, 1536, 24), "xlarge": (48, 2048, 32)}


@pytest.mark.parametrize("name", SEED)
def test_a_brain_has_the_shape_of_the_seed_and_sleeps(name: str) -> None:
    config = preset(f"braingpt-{name}")
    shape = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
    assert shape == SEED[name]
    columns = config.columns
    asleep = 1 - columns.thalamus.num_awake / columns.num_units
    assert 0.95 <= asleep < 0.96
    assert config.feed_forwards == ["columns"] * config.num_hidden_layers
    with torch.device("meta"):
        model = PragnosiaForCausalLM(config)
    sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
    sleeping = sum(size for key, size in sizes.items() if ".bank." in key) * asleep
    counted = account(config)
    assert counted.total_parameters == sum(sizes.values())
    assert counted.active_parameters == pytest.approx(sum(sizes.values()) - sleeping)


@pytest.mark.parametrize("names", [OTHERS, list(BRAINS)])
def test_presets_grow(names: list[str]) -> None:
    layers = [preset(name).num_hidden_layers for name in names]
    assert layers == sorted(layers)


@pytest.mark.parametrize("name", [*OTHERS, *BRAINS])
def test_lobes_are_equal_quarters(name: str) -> None:
    units = preset(name).units
    assert units is not None
    assert units.lobes == dict.fromkeys(LOBES, units.num_units // 4)


@pytest.mark.parametrize(("name", "plain"), [("brain-lm", "dense"), ("brain-lm-spiking", "spiking")])
def test_what_remembers_weighs_16_million(name: str, plain: str) -> None:
    config = preset(name)
    counted = account(config)
    assert counted.total_parameters == pytest.approx(16e6, rel=0.05)
    assert counted.active_parameters < 0.75 * counted.total_parameters, "rows that nobody recalls sleep"
    assert config.feed_forwards == [plain, plain, "memory", plain, "memory", plain]
    assert config.workspace is not None
    assert config.working_memory is not None


def test_a_preset_with_changes() -> None:
    config = preset("nano", vocab_size=99, max_position_embeddings=7)
    assert (config.vocab_size, config.max_position_embeddings) == (99, 7)
    assert preset("nano").vocab_size == 4096, "the table stays as it was"


def test_an_unknown_preset() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'nanoo'. Did you mean 'nano'. Available: 1b, 450b, 60b"):
        preset("nanoo")


def test_an_unknown_change() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'hidden_size'"):
        preset("nano", hiden_size=3)
