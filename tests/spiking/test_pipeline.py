"""Words through regions: pipelined answers are read in time, and a word alone is answered alike either way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pragnosia.errors import ConfigError
from pragnosia.spiking.configuration import read_brain
from pragnosia.spiking.pipeline import Route, journey, present
from pragnosia.spiking.regions import Brain

ROUTE = Route(into="ear", out="mouth", steps_per_word=6)


@pytest.fixture(scope="module")
def chain() -> Brain:
    """Every neuron repeats one of the region before, at once and without an echo."""
    neuron = {"kind": "lif", "tau_ms": 2, "threshold_mv": 10, "refractory_ms": 0}
    values: dict[str, Any] = {
        "neuron": neuron,
        "populations": {name: {"size": 40} for name in ("ear", "middle", "mouth")},
        "projections": [
            {"source": "ear", "target": "middle", "fan_in": 1, "weight": 12, "delay_ms": 5},
            {"source": "middle", "target": "mouth", "fan_in": 1, "weight": 12, "delay_ms": 8},
            {"source": "mouth", "target": "ear", "fan_in": 1, "weight": 0.01, "delay_ms": 5, "role": "recurrent"},
        ],
    }
    return Brain.build(read_brain(values))


def words(*spoken: int) -> list[torch.Tensor]:
    """Each a current into so many neurons of the ear, just above what makes them fire in every step; 0 is silence."""
    return [26.0 * (torch.arange(40) < loud).float()[None] for loud in spoken]


def test_the_journey_runs_forward(chain: Brain) -> None:
    assert journey(chain, "ear", "mouth") == 13
    with pytest.raises(ConfigError, match="no afferent projections lead from mouth to ear"):
        journey(chain, "mouth", "ear")
    with pytest.raises(ConfigError, match="unknown population 'moth'"):
        journey(chain, "ear", "moth")


@pytest.mark.parametrize("pipelined", [True, False])
def test_silence_is_answered_by_silence(chain: Brain, pipelined: bool) -> None:
    state = chain.begin()
    state.populations["ear"].membranes.v.zero_()
    for name in ("middle", "mouth"):
        state.populations[name].membranes.v.zero_()
    answers, after = present(chain, state, words(20, 0, 40, 0), ROUTE, pipelined=pipelined)
    heard = answers.spikes[:, 0].sum(-1).tolist()
    assert heard[0] > 0
    assert heard[2] > 0
    assert heard[1] == heard[3] == 0
    assert answers.steps == after.clock == (4 * 6 + 13 if pipelined else 4 * 19)


def test_pipelined_words_are_answered_as_one_by_one(chain: Brain) -> None:
    state = chain.begin()
    for one in state.populations.values():
        one.membranes.v.zero_()
    at_once, _ = present(chain, state, words(20, 0, 40, 15), ROUTE)
    in_turn, _ = present(chain, state, words(20, 0, 40, 15), ROUTE, pipelined=False)
    assert torch.equal(at_once.spikes, in_turn.spikes)
    assert in_turn.steps == 76
    assert at_once.steps == 37


def test_a_word_takes_a_step_at_least() -> None:
    with pytest.raises(ConfigError, match="steps_per_word is 0"):
        Route(steps_per_word=0)
