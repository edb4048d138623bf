"""Averaged weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pragnosia.errors import ConfigError
from pragnosia.training.average import Average, AverageConfig


def test_the_average_follows_the_weights_and_steps_aside() -> None:
    weight = nn.Parameter(torch.zeros(3))
    average = Average([("w", weight)], AverageConfig(decay=0.5, every=2))
    for step in range(1, 201):
        weight.data += 1
        average.update(step)
    # After many steps of +1 every two, w - m settles at 2 d^2 / (1 - d^2) with d = 0.5, right after an update.
    assert (weight - average.means["w"]).detach() == pytest.approx(torch.full((3,), 2 * 0.25 / 0.75), rel=1e-3)
    own = weight.detach().clone()
    with average.in_place():
        assert torch.equal(weight.detach(), average.means["w"])
    assert torch.equal(weight.detach(), own)


def test_an_odd_step_waits() -> None:
    weight = nn.Parameter(torch.zeros(1))
    average = Average([("w", weight)], AverageConfig(every=5))
    weight.data += 1
    average.update(4)
    assert float(average.means["w"]) == 0


@pytest.mark.parametrize("bad", [{"decay": 1.0}, {"every": 0}])
def test_impossible_options(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        AverageConfig(**bad)
