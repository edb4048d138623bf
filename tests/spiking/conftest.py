"""A spiking language model small enough to be looked at neuron by neuron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pragnosia.spiking.neurogen import NeuroGenForCausalLM
from pragnosia.spiking.neurogen_configuration import NeuroGenConfig

MakeMind = Callable[..., NeuroGenForCausalLM]
NEURON = {"kind": "lifa", "tau_ms": 3, "threshold_mv": 1, "refractory_ms": 0, "tau_adaptation_ms": 20,
          "adaptation_mv": 0.2}  # fmt: skip
ONE = {
    "neuron": NEURON,
    "populations": {"cortex": {"size": 24}},
    "projections": [{"source": "cortex", "target": "cortex", "fan_in": "all", "weight": 0.15, "mixed": True}],
}
TWO = {
    "neuron": NEURON,
    "populations": {"ear": {"size": 20}, "mouth": {"size": 16}},
    "projections": [
        {"source": "ear", "target": "mouth", "fan_in": 8, "weight": 0.4, "mixed": True, "delay_ms": [1, 3]},
        {"source": "mouth", "target": "ear", "fan_in": "all", "weight": 0.2, "mixed": True, "delay_ms": 2},
    ],
}
BRAINS = {"one": ONE, "two": TWO}


def mind(wiring: str = "one", **changes: Any) -> NeuroGenForCausalLM:
    """Made alike for alike changes."""
    torch.manual_seed(0)
    values = {"vocab_size": 11, "brain": BRAINS[wiring], "rank": 5, "trace_tokens": [0.7, 3.0]} | changes
    return NeuroGenForCausalLM(NeuroGenConfig(**values)).eval()


@pytest.fixture
def make_mind() -> MakeMind:
    return mind


@pytest.fixture
def tokens() -> torch.Tensor:
    """(3, 16) ids below 11."""
    return torch.randint(0, 11, (3, 16), generator=torch.Generator().manual_seed(3))
