"""A population that never fires, or always: which, and why."""

from __future__ import annotations

from typing import Any

import pytest

from pragnosia.errors import SimulationError
from pragnosia.spiking.configuration import read_brain
from pragnosia.spiking.health import check_alive, mean_rates_hz
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.running import run


def checked(steps: int = 150, **mean_mv: float) -> None:
    populations: dict[str, Any] = {
        name: {"size": 20, "drive": {"constant": {"mean_mv": mean}}} for name, mean in mean_mv.items()
    }
    projection = {"source": "awake", "target": "other", "fan_in": 4, "weight": 0.25, "delay_ms": 1}
    brain = Brain.build(read_brain({"populations": populations, "projections": [projection]}))
    activity, _ = run(brain, brain.begin(), steps)
    assert mean_rates_hz(brain, activity)["awake"] > 0
    check_alive(brain, activity)


def test_a_network_that_fires_is_well() -> None:
    checked(awake=20, other=17)


def test_a_population_that_never_fires() -> None:
    said = (
        r"population 'other' never fired in 150 steps: it is driven by 3.0 mV and \+0\.\d mV from others,"
        r" its threshold is 15 mV; raise its drive"
    )
    with pytest.raises(SimulationError, match=said) as caught:
        checked(awake=20, other=3)
    assert "\n" not in str(caught.value)


def test_a_population_that_always_fires() -> None:
    said = (
        r"population 'other' fires in nearly every step it can \(3\d\d of 333 Hz\): it is driven by 9000.0 mV .* lower"
    )
    with pytest.raises(SimulationError, match=said):
        checked(awake=20, other=9000)


def test_too_short_a_time_says_nothing() -> None:
    checked(steps=60, awake=20, other=3)
