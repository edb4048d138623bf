"""Each modulator's effect, measured on a running network; and dopamine's on what a rule changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pragnosia.errors import ConfigError
from pragnosia.spiking.configuration import read_brain
from pragnosia.spiking.modulation import Expectation, Levels, modulated
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.running import run


@pytest.fixture(scope="module")
def brain() -> Brain:
    values: dict[str, Any] = {
        "drive": {"constant": {"mean_mv": 17, "spread_mv": 3}},
        "populations": {"cortex": {"size": 120}, "brake": {"size": 40}},
        "projections": [
            {"source": "cortex", "target": "brake", "fan_in": 8, "weight": 0.5, "delay_ms": 2},
            {"source": "cortex", "target": "cortex", "fan_in": 8, "weight": 0.6, "delay_ms": 2, "role": "recurrent"},
            {"source": "brake", "target": "cortex", "fan_in": 6, "weight": -0.8, "delay_ms": 2},
        ],
    }
    return Brain.build(read_brain(values))


def spikes(brain: Brain, **levels: float) -> int:
    """Of cortex in 200 steps under these levels."""
    activity, _ = run(modulated(brain, Levels(**levels)), brain.begin(), 200)
    return int(activity.counts[0, :, 0].sum())


def test_noradrenaline_makes_neurons_more_responsive(brain: Brain) -> None:
    assert spikes(brain, noradrenaline=0) < spikes(brain) < spikes(brain, noradrenaline=3)


def test_serotonin_strengthens_inhibition(brain: Brain) -> None:
    assert spikes(brain, serotonin=0) > spikes(brain) > spikes(brain, serotonin=3)


def test_acetylcholine_quiets_recurrence_and_wakes_from_adaptation(brain: Brain) -> None:
    under = modulated(brain, Levels(acetylcholine=2))
    weights = [(one.synapses.weights / other.synapses.weights).unique() for one, other in
               zip(under.projections, brain.projections, strict=True)]  # fmt: skip
    assert [one.tolist() for one in weights] == [[1.0], [0.5], [1.0]]
    # without synapses only adaptation is left of it
    alone = Brain(config=brain.config, regions=brain.regions, projections=())
    assert spikes(alone, acetylcholine=0) < spikes(alone) < spikes(alone, acetylcholine=2.5)


def test_dopamine_scales_plasticity_and_forgets_what_is_expected(brain: Brain) -> None:
    eligibility, weights = torch.rand(50, generator=torch.Generator().manual_seed(0)), torch.zeros(50)
    levels, expectation, changes = Levels(), Expectation(), []
    for _ in range(60):
        levels, expectation = expectation.surprised(1.0, levels)
        change = levels.factor("dopamine") * eligibility
        weights = weights + 0.1 * change
        changes.append(float(change.sum()))
    assert changes[0] == pytest.approx(float(eligibility.sum()))
    assert changes == sorted(changes, reverse=True)
    assert changes[-1] < 0.01 * changes[0]
    omitted, _ = expectation.surprised(0.0, levels)
    assert omitted.factor("dopamine") < -0.9
    assert spikes(brain, dopamine=3) == spikes(brain), "dopamine changes what is learned, not what is said"


def test_levels_at_rest_change_nothing_and_releases_fade(brain: Brain) -> None:
    assert modulated(brain, Levels()) is brain
    released = Levels().released(noradrenaline=2.0)
    assert released.noradrenaline == 3
    assert released.faded(500).noradrenaline == pytest.approx(1 + 2 / 2.718281828)
    assert released.faded(1e6) == Levels()
    with pytest.raises(ConfigError, match=r"unknown modulator 'dopamin'. Did you mean 'dopamine'"):
        Levels.of({"dopamin": 2})
    with pytest.raises(ConfigError, match=r"level of serotonin is -1"):
        Levels(serotonin=-1)
