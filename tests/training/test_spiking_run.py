"""A spiking model in the one loop: trained by any rule it defines, resumed to the bit, refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pragnosia import NeuroGenForCausalLM
from pragnosia.errors import ConfigError
from pragnosia.training.configuration import read_config
from pragnosia.training.log import LOG, read_log
from pragnosia.training.trainer import train

BRAIN = {
    "neuron": {"kind": "lifa", "tau_ms": 2, "threshold_mv": 1, "refractory_ms": 0},
    "populations": {"ear": {"size": 24}, "mouth": {"size": 12}},
    "projections": [
        {"source": "ear", "target": "mouth", "fan_in": 6, "weight": 0.5, "mixed": True},
        {"source": "ear", "target": "ear", "fan_in": "all", "weight": 0.2, "mixed": True},
    ],
}


@pytest.fixture
def spikes(configure: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def changed(**sections: Any) -> dict[str, Any]:
        values = configure(
            **{"steps": 8, "rule": "surrogate", "schedule": {"name": "constant", "warmup_steps": 2}, **sections}
        )
        return values | {"model": {"kind": "neurogen", "brain": BRAIN, "rank": 8, **sections.get("model", {})}}

    return changed


@pytest.mark.parametrize("rule", ["surrogate", "three_factor"])
def test_a_run_that_was_stopped_goes_on_to_the_bit(
    spikes: Callable[..., dict[str, Any]], tmp_path: Path, rule: str
) -> None:
    whole = train(spikes(rule=rule), out=tmp_path / "whole")
    train(spikes(rule=rule, steps=5), out=tmp_path / "parts")
    parts = train(spikes(rule=rule), out=tmp_path / "parts", resume=True)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.bits_per_byte == parts.bits_per_byte
    records = read_log(tmp_path / "whole" / LOG)
    assert 0 < records[-1]["spikes_per_neuron"] < 1
    assert records[-1]["loss"] < records[0]["loss"]
    model = NeuroGenForCausalLM.from_pretrained(tmp_path / "whole")
    assert model.config.brain == BRAIN
    assert model.config.tokenizer_digest is not None


def test_synapses_die_and_grow_and_a_run_goes_on_to_the_bit(
    spikes: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    plan = {"rewiring": {"every": 2, "share": 0.25}, "ema": {"decay": 0.9}}
    train(spikes(**plan), out=tmp_path / "whole")
    train(spikes(**plan, steps=5), out=tmp_path / "parts")
    train(spikes(**plan), out=tmp_path / "parts", resume=True)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    train(spikes(), out=tmp_path / "still")
    still = load_file(tmp_path / "still" / "model.safetensors")
    assert not torch.equal(one["wires.0.slots"], still["wires.0.slots"])
    fan_in = [(tensors["wires.0.slots"] % 12).bincount(minlength=12).tolist() for tensors in (one, still)]
    assert fan_in == [[6] * 12] * 2, "a neuron listens to as many as before: 72 synapses, never more"
    events = [event for record in read_log(tmp_path / "whole" / LOG) for event in record.get("events", ())]
    counted = [(event["step"], event["births"], event["deaths"]) for event in events]
    assert counted == [(2, 18, 18), (4, 18, 18), (6, 18, 18)]
    NeuroGenForCausalLM.from_pretrained(tmp_path / "whole")


def test_a_brain_may_stand_in_a_file_of_its_own(spikes: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    import yaml

    (tmp_path / "brain.yaml").write_text(yaml.safe_dump(BRAIN))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(spikes(model={"brain": "brain.yaml"})))
    assert read_config(tmp_path / "run.yaml").model["brain"] == BRAIN
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(spikes(model={"brain": "brian.yaml"})))
    with pytest.raises(ConfigError, match=r"model.brain: cannot read .*brian.yaml"):
        read_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rewiring": {"share": 2}}, "rewiring.share is 2"),
        ({"rewiring": {}, "rule": "delta"}, "rule delta leaves synapses"),
        ({"rewiring": {}, "model": {"plastic": False}}, "model.plastic is false"),
        ({"rule": "backprop"}, "not defined for a spiking model; it learns by surrogate, eprop"),
        ({"model": {"kind": "neurogn"}}, "neurogen"),
        ({"model": {"hidden_size": 3}}, "hidden_size"),
        ({"model": {"brain": None}}, "model.brain is missing"),
        ({"learning": {"feedback": "random"}}, "takes nothing of its own"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_made(
    spikes: Callable[..., dict[str, Any]], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        train(spikes(**changes), out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
