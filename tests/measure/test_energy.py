from __future__ import annotations

import pytest
import torch

from pragnosia.errors import ConfigError
from pragnosia.measure.accounting import PRECISIONS
from pragnosia.measure.energy import MODELS, energy_model


def test_a_multiply_accumulate_is_horowitz_sum():
    model = energy_model("circuit-45nm-ddr")
    assert model.estimate(2, 0, "float32").joules == pytest.approx(4.6e-12)
    assert model.estimate(0, 8, "float32").joules == pytest.approx(1.3e-9)


def test_the_floor_lies_below_the_package():
    for device, gpu, package in (("cpu", "", "package-cpu"), ("cuda", "NVIDIA H200", "package-gpu")):
        floor, whole = energy_model(device=device, gpu_name=gpu), energy_model(package)
        assert floor.pj_per_byte < whole.pj_per_byte
        for precision in set(floor.pj_per_operation) & set(whole.pj_per_operation):
            assert floor.pj_per_operation[precision] < whole.pj_per_operation[precision]


def test_the_stated_ratios_are_the_tables():
    floor, whole = energy_model("circuit-7nm-ddr"), energy_model("package-cpu")
    assert whole.pj_per_operation["float32"] / floor.pj_per_operation["float32"] == pytest.approx(66, abs=1)
    assert whole.pj_per_byte / floor.pj_per_byte == pytest.approx(8, abs=0.5)


def test_fewer_bits_cost_less():
    for model in MODELS.values():
        costs = model.pj_per_operation
        assert costs["bfloat16"] <= costs["float32"]
        assert set(costs) <= set(PRECISIONS)


@pytest.mark.parametrize(
    ("device", "gpu", "name"),
    [
        ("cpu", "", "circuit-7nm-ddr"),
        ("cuda", "NVIDIA H200", "circuit-7nm-hbm"),
        ("cuda", "NVIDIA GeForce RTX 4090", "circuit-7nm-gddr"),
    ],
)
def test_a_device_has_its_model(device, gpu, name):
    assert energy_model(device=device, gpu_name=gpu).name == name


def test_the_gpu_in_use_is_asked_for_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    assert energy_model(device="cuda").name == "circuit-7nm-hbm"


def test_an_estimate_says_that_it_is_one():
    estimate = energy_model().estimate(1e9, 1e9, "bfloat16")
    assert estimate.source == "model"
    assert "lower bound" in estimate.note
    assert "Jouppi" in estimate.note


def test_unknown_names():
    with pytest.raises(ConfigError, match="Did you mean 'package-cpu'"):
        energy_model("packag-cpu")
    with pytest.raises(ConfigError, match="unknown precision 'float8'"):
        energy_model().estimate(1, 1, "float8")
