"""A kept brain is the brain that was kept: file, synapses, spikes; and what does not fit together is one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pragnosia.errors import ConfigError
from pragnosia.learning.plasticity import learn
from pragnosia.spiking.configuration import read_brain
from pragnosia.spiking.files import FILE, brain_file
from pragnosia.spiking.keeping import TENSORS, keep, written
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.running import run

CONFIGS = Path(__file__).parents[2] / "configs"


def small(**changes: Any) -> Brain:
    values = {
        "seed": 3,
        "drive": {"constant": {"mean_mv": 18, "spread_mv": 3}, "noise": {"mean_mv": 12, "sigma_mv": 6}},
        "populations": {
            "ear": {"size": 30, "winners": 5, "neuron": {"kind": "lifa"}},
            "mouth": {"size": 20, "neuron": {"kind": "lif"}, "receptor": {"kind": "conductances"}},
        },
        "projections": [
            {"source": "ear", "target": "mouth", "fan_in": 6, "weight": 0.05, "delay_ms": [2, 6], "plasticity": "stdp"},
            {"source": "mouth", "target": "ear", "fan_in": 4, "weight": -0.5, "role": "recurrent", "name": "back"},
        ],
        **changes,
    }
    return Brain.build(read_brain(values))


def spikes(brain: Brain) -> list[list[int]]:
    found = run(brain, brain.begin(), 150, events=True)[0].events
    assert found is not None
    assert len(found) > 50
    return sorted(found.tolist())


@pytest.mark.parametrize("config", [small().config, read_brain(CONFIGS / "neurogen.yaml")])
def test_a_configuration_is_written_as_it_is_read(config: Any) -> None:
    assert read_brain(written(config)) == config


def test_what_was_learned_runs_as_it_did(tmp_path: Path) -> None:
    brain = small()
    _, learned, _, _ = learn(brain, brain.begin(), 120)
    assert not torch.equal(learned.projections[0].synapses.weights, brain.projections[0].synapses.weights)
    keep(tmp_path, learned.config, {number: one.synapses for number, one in enumerate(learned.projections)})
    again = Brain.build(read_brain(tmp_path / FILE))
    assert brain_file(tmp_path) == tmp_path / FILE
    assert brain_file(CONFIGS / "neurogen.yaml") == CONFIGS / "neurogen.yaml"
    assert brain_file(CONFIGS / "nano.yaml") is None
    for one, other in zip(learned.projections, again.projections, strict=True):
        assert one.config == other.config
        for part in ("starts", "slots", "weights"):
            assert torch.equal(getattr(one.synapses, part), getattr(other.synapses, part))
    assert spikes(again) == spikes(learned) != spikes(brain)
    # it goes on learning from there, and another seed is other noise and other beginnings of the same synapses
    learn(again, again.begin(), 5)
    other = Brain.build(read_brain(tmp_path / FILE, {"seed": 4}))
    assert torch.equal(other.projections[0].synapses.slots, learned.projections[0].synapses.slots)


def test_currents_of_its_own_are_kept_by_drive(tmp_path: Path) -> None:
    brain = small()
    own = torch.arange(30, dtype=torch.float32)
    synapses = {number: one.synapses for number, one in enumerate(brain.projections)}
    keep(tmp_path, brain.config, synapses, {("ear", "constant"): own})
    assert torch.equal(Brain.build(read_brain(tmp_path / FILE)).region("ear").bias, own)
    noisy = Brain.build(read_brain(tmp_path / FILE), drive="noise")
    assert torch.equal(noisy.region("ear").bias, Brain.build(brain.config, drive="noise").region("ear").bias)


def _without(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["projections.1.slots"]


def _beyond(tensors: dict[str, torch.Tensor]) -> None:
    tensors["projections.1.slots"][0] += 10_000


def _doubled(tensors: dict[str, torch.Tensor]) -> None:
    tensors["projections.0.weights"] = tensors["projections.0.weights"].double()


def _odd(tensors: dict[str, torch.Tensor]) -> None:
    tensors["projections.0.weights"][3] = torch.nan


def _shuffled(tensors: dict[str, torch.Tensor]) -> None:
    tensors["projections.0.starts"][2] = -1


def _more(tensors: dict[str, torch.Tensor]) -> None:
    tensors["projections.2.slots"] = torch.zeros(1, dtype=torch.int32)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without, "has no projections.1.slots"),
        (_beyond, "reaches beyond ear"),
        (_doubled, "projections.0.weights is no row of torch.float32"),
        (_odd, "one that is no number"),
        (_shuffled, "does not rise from 0 to 120"),
        (_more, "has more projections than the 2 of its brain file"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, spoil: Any, said: str) -> None:
    brain = small()
    keep(tmp_path, brain.config, {number: one.synapses for number, one in enumerate(brain.projections)})
    tensors = load_file(tmp_path / TENSORS)
    spoil(tensors)
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises(ConfigError, match=said):
        Brain.build(read_brain(tmp_path / FILE))


def test_no_file_or_a_damaged_one_is_one_line(tmp_path: Path) -> None:
    config = replace(small().config, synapses=str(tmp_path / TENSORS))
    with pytest.raises(ConfigError, match=r"there is no .*synapses\.safetensors"):
        Brain.build(config)
    (tmp_path / TENSORS).write_bytes(b"no tensors at all")
    with pytest.raises(ConfigError, match="cannot read the synapses"):
        Brain.build(config)
