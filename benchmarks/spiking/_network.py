"""One network for all: configs/neurogen.yaml without competition, which no peer has, flat as peers want it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pragnosia.spiking.configuration import read_brain
from pragnosia.spiking.neurons import LIFA
from pragnosia.spiking.regions import Brain

CONFIG = Path(__file__).parents[2] / "configs" / "neurogen.yaml"


def brain(drive: str, *, times: int = 1, spread: float = 0.0) -> Brain:
    """`times` as many neurons of the same fan-in; with a spread every synapse has a weight of its own."""
    values = yaml.safe_load(CONFIG.read_text("utf-8"))
    values["populations"] = {name: {"size": one["size"] * times} for name, one in values["populations"].items()}
    values["projections"] = [
        {**{key: value for key, value in one.items() if key != "plasticity"}, "spread": spread}
        for one in values["projections"]
    ]
    return Brain.build(read_brain(values), drive=drive)


def flat(given: Brain) -> dict[str, Any]:
    """Its synapses and neurons as arrays over the whole network, and its numbers."""
    sources, targets, delays, weights = [], [], [], []
    sizes = {region.name: region.config.size for region in given.regions}
    for one in given.projections:
        slots = one.synapses.slots.long().numpy()
        size = sizes[one.config.target]
        sources.append(one.synapses.sources.numpy() + given.first[one.config.source])
        targets.append(slots % size + given.first[one.config.target])
        delays.append(slots // size)
        weights.append(one.synapses.weights.expand(one.synapses.count).numpy())
    neuron = given.regions[0].config.neuron
    assert isinstance(neuron, LIFA)
    state = given.begin().populations
    given_noise = {region.config.drive["noise"].sigma_mv for region in given.regions if region.noise_mv}
    return {
        "source": np.concatenate(sources).astype(np.int32),
        "target": np.concatenate(targets).astype(np.int32),
        "delay": np.concatenate(delays).astype(np.int32),
        "weight": np.concatenate(weights).astype(np.float32),
        "bias": torch.cat([region.bias for region in given.regions]).numpy(),
        "start": torch.cat([state[region.name].membranes.v[0] for region in given.regions]).numpy(),
        "tau": neuron.tau_ms,
        "tau_adaptation": neuron.tau_adaptation_ms,
        "threshold": neuron.threshold_mv,
        "adaptation": neuron.adaptation_mv,
        "refractory": neuron.refractory_ms,
        "sigma": given_noise.pop() if given_noise else 0.0,
    }
