"""A brain in a file: what is read, and one clear line for what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia.errors import ConfigError
from pragnosia.spiking.configuration import read_brain
from pragnosia.spiking.neurons import LIF
from pragnosia.spiking.regions import Brain
from pragnosia.spiking.synapses import Conductances

NEUROGEN = Path(__file__).parents[2] / "configs" / "neurogen.yaml"


def small(**changes: Any) -> dict[str, Any]:
    projection = {"source": "ear", "target": "mouth", "fan_in": 3, "weight": 0.5, "delay_ms": 2}
    return {"populations": {"ear": {"size": 10}, "mouth": {"size": 20}}, "projections": [projection | changes]}


def test_neurogen_is_wired_as_the_seed_has_it() -> None:
    config = read_brain(NEUROGEN)
    sizes = {name: population.size for name, population in config.populations.items()}
    assert sizes == {
        "thalamus": 1024,
        "wernicke": 10240,
        "hippocampus": 5120,
        "pfc": 10240,
        "basal_ganglia": 2560,
        "broca": 10240,
    }
    fan_in = dict.fromkeys(sizes, 0)
    for projection in config.projections:
        fan_in[projection.target] += projection.fan_in
    assert set(fan_in.values()) == {30}
    assert sum(fan_in[name] * size for name, size in sizes.items()) == 1_182_720
    assert any(one.name == "working memory" and one.source == one.target == "pfc" for one in config.projections)


def test_every_target_has_its_fan_in_and_nobody_itself() -> None:
    values = small(delay_ms=[2, 5], spread=0.5)
    values["projections"].append({"source": "mouth", "target": "mouth", "fan_in": 19, "weight": -1})
    brain = Brain.build(read_brain(values))
    forward, own = (one.synapses for one in brain.projections)
    targets = forward.slots.long() % 20
    assert torch.bincount(targets, minlength=20).tolist() == [3] * 20
    delays = forward.slots // 20
    assert (int(delays.min()), int(delays.max())) == (2, 5)
    assert float(forward.weights.min()) >= 0.25
    assert float(forward.weights.max()) <= 0.75
    assert not bool((own.sources == own.slots % 20).any())
    assert own.weights.tolist() == [-1.0], "one weight for all is kept once"


def test_what_a_population_does_not_say_is_shared() -> None:
    values = small() | {"neuron": {"kind": "lif", "tau_ms": 10}, "receptor": {"kind": "conductances"}}
    values["populations"]["ear"]["neuron"] = {"kind": "izhikevich", "d": 2}
    config = read_brain(values)
    assert config.populations["mouth"].neuron == LIF(tau_ms=10)
    assert config.populations["ear"].neuron.kind == "izhikevich"
    assert config.populations["ear"].receptor == Conductances()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (small(target="moth"), r"unknown population in projections\[0\] \(ear -> moth\).target 'moth'.*'mouth'"),
        (small(delay_ms=0.4), r"ear -> mouth\): delay_ms 0.4 is shorter than dt_ms 1; .* lengthen the delay"),
        (small(delay_ms=[5, 2]), r"runs from 5 down to 2"),
        (small(fan_in=11), r"fan_in is 11; ear has 10 other neurons .* 1 to 10"),
        (small(fanin=3), r"unknown key in projections\[0\] 'fanin'. Did you mean 'fan_in'"),
        (small(weight="strong"), r"projections\[0\].weight: "),
        (small() | {"dt_ms": 0}, r"dt_ms is 0"),
        (small() | {"neuron": {"kind": "lif", "tau": 3}}, r"unknown key in populations.ear.neuron 'tau'"),
        (small() | {"neuron": {"kind": "liff"}}, r"unknown kind in populations.ear.neuron 'liff'. Did you mean 'lif'"),
        (small() | {"neuron": {"kind": "lif", "tau_ms": -1}}, r"neuron.tau_ms is -1.0; it must be greater than 0"),
        (small() | {"receptor": {"kind": "currents", "tau_ms": 0}}, r"time constant is 0.0 ms"),
        (small() | {"drive": {"nois": {}}}, r"unknown key in populations.ear.drive 'nois'. Did you mean 'noise'"),
        (small() | {"populations": {}}, r"populations is empty"),
        (small() | {"populations": None}, r"populations is None, expected"),
        ({"populations": {"a": {"size": 3, "winners": 4}}}, r"populations.a: winners is 4; it must lie in 1 to 3"),
        ({"populations": {"a": {"size": 0}}}, r"populations.a: size is 0"),
        ({"populations": {"a": {}}}, r"populations.a.size: "),
        ({"populations": {"a": 5}}, r"populations.a is 5, expected at least its size"),
        ({"populations": {"a": {"size": 2, "neuron": {"kind": "lif", "refractory_ms": 300}}}}, r"more than 255 steps"),
    ],
)
def test_what_cannot_be_is_one_line(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read_brain(values)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        read_brain(tmp_path / "none.yaml")
    (tmp_path / "odd.yaml").write_text("populations: [", "utf-8")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_brain(tmp_path / "odd.yaml")
    with pytest.raises(ConfigError, match="unknown drive 'nois'"):
        Brain.build(read_brain(small()), drive="nois")
