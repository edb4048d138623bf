"""What tells that a model should change: held to sums written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pragnosia.errors import ConfigError
from pragnosia.plasticity.triggers import Plateau, PlateauConfig, gradient_per_parameter, idle, overloaded


def test_a_plateau_is_of_whole_windows() -> None:
    plateau = Plateau(PlateauConfig(window=4, gain=0.1))
    for loss in (8.0, 6.0, 7.0, 7.0, 6.5, 6.5, 6.5):
        plateau.add(loss)
        assert plateau.gain is None, "two windows are not full yet"
        assert plateau.reason is None
    plateau.add(6.5)
    assert plateau.gain == pytest.approx(1 - 26 / 28)
    assert plateau.reason == "plateau: the loss fell by 7.14 % in 4 steps, below 10 %"
    for _ in range(4):
        plateau.add(3.0)
    assert plateau.gain == pytest.approx(1 - 12 / 26)
    assert plateau.reason is None
    assert len(plateau.losses) == 8
    plateau.clear()
    assert plateau.gain is None


def test_a_rising_loss_is_a_plateau_too() -> None:
    plateau = Plateau(PlateauConfig(window=1, gain=0.0), [2.0, 2.5])
    assert plateau.reason is not None
    assert "-25.00 %" in plateau.reason


def test_the_busiest_unit_of_all_layers_is_named() -> None:
    loads = {1: torch.tensor([1.0, 1.0, 2.0]), 3: torch.tensor([0.0, 9.0, 1.0, 2.0])}
    found = overloaded(loads, 2.5)
    assert found is not None
    assert (found.layer, found.unit, found.share) == (3, 1, 3.0)
    assert "unit 1 of layer 3 did 3 times an even share, above 2.5" in found.reason
    assert overloaded(loads, 3.0) is None
    assert overloaded({}, 2.0) is None


def test_who_does_too_little_is_told_layer_by_layer() -> None:
    loads = {0: torch.tensor([4.0, 0.0, 3.0, 1.0]), 2: torch.tensor([2.0, 2.0, 2.0, 2.0])}
    assert idle(loads, 0.5) == {0: [1], 2: []}
    assert idle(loads, 0.6) == {0: [1, 3], 2: []}, "the idlest first"
    assert idle({0: torch.zeros(2)}, 0.5) == {0: [0, 1]}, "nobody woke at all"


def test_gradients_count_per_parameter() -> None:
    layers = [nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False), nn.Linear(1, 1)]
    layers[0].weight.grad = torch.full((2, 2), 3.0)
    layers[1].weight.grad = torch.tensor([[3.0, 4.0]])
    assert gradient_per_parameter(layers) == pytest.approx([3.0, 12.5**0.5, 0.0])


@pytest.mark.parametrize("wrong", [{"window": 0}, {"gain": 1.0}, {"gain": -0.1}])
def test_a_plateau_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"plateau.{next(iter(wrong))}"):
        PlateauConfig(**wrong)  # type: ignore[arg-type]
