"""Presets: their names say what they weigh."""

from __future__ import annotations

import pytest
import torch

from pragnosia.errors import ConfigError
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.presets import LOBES, PRESETS, preset
from pragnosia.units import format_count


@pytest.mark.parametrize("name", PRESETS)
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
    assert tuple(config.experts.lobes) == LOBES
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


def test_presets_grow() -> None:
    sizes = [preset(name).num_hidden_layers for name in PRESETS]
    assert sizes == sorted(sizes)


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
