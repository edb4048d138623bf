"""`simulate` and `raster`: what they answer, what they draw, and one line for what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

Run = Callable[..., Any]


def brain(**changes: Any) -> dict[str, Any]:
    return {
        "drive": {
            "constant": {"mean_mv": 17, "spread_mv": 3},
            "noise": {"mean_mv": 12, "spread_mv": 2, "sigma_mv": 5},
        },
        "populations": {"ear": {"size": 40, "winners": 5}, "mouth": {"size": 30}},
        "projections": [
            {"source": "ear", "target": "mouth", "fan_in": 6, "weight": 0.5, "delay_ms": 3},
            {"source": "mouth", "target": "mouth", "fan_in": 4, "weight": -0.5, "delay_ms": 1},
        ],
        **changes,
    }


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "brain.yaml"
    path.write_text(yaml.safe_dump(brain()), "utf-8")
    return path


@pytest.mark.parametrize("drive", ["constant", "noise"])
def test_simulate_says_how_it_went(run: Run, config: Path, drive: str) -> None:
    values = run("simulate", config, "--steps", "300", "--drive", drive, "--json").values
    assert (values["neurons"], values["synapses"], values["steps"]) == (70, 300, 300)
    assert values["steps_per_second"] > 0
    assert set(values["mean_rate_hz"]) == {"ear", "mouth"}
    mean = (40 * values["mean_rate_hz"]["ear"] + 30 * values["mean_rate_hz"]["mouth"]) / 70
    assert values["mean_rate_hz_of_all"] == pytest.approx(mean)
    assert values["spikes"] == pytest.approx(mean * 70 * 0.3)
    step = values["per_step"]
    assert step["neuron_updates"] == 70
    assert 0 < step["synaptic_operations"] < 300
    assert 0 < step["joules"] < step["dense_joules"]
    again = run("simulate", config, "--steps", "300", "--drive", drive, "--json", "--threads", "2").values
    assert again["mean_rate_hz"] == values["mean_rate_hz"]
    assert run("simulate", config, "--steps", "300", "--drive", drive, "--seed", "5", "--json").values != values


def test_simulate_for_people(run: Run, config: Path) -> None:
    done = run("simulate", config, "--steps", "120", "--level", "serotonin=2")
    assert done.code == 0, done.err
    for word in ("neurons", "synapses", "steps/s", "Hz: ear", "by model"):
        assert word in done.out


def test_levels_have_their_effect(run: Run, config: Path) -> None:
    calm = run("simulate", config, "--steps", "300", "--json").values
    alert = run("simulate", config, "--steps", "300", "--level", "noradrenaline=4", "--json").values
    assert alert["modulators"]["noradrenaline"] == {"level": 4.0, "factor": pytest.approx(1.3)}
    assert alert["mean_rate_hz_of_all"] > calm["mean_rate_hz_of_all"]


def test_raster_draws_and_keeps_arrays(run: Run, config: Path, tmp_path: Path) -> None:
    out, arrays = tmp_path / "r.png", tmp_path / "r.npz"
    values = run(
        *("raster", config, "--steps", "80", "--out", out, "--arrays", arrays, "--traces", "2"),
        *("--release", "noradrenaline=2@30", "--json"),
    ).values
    assert out.read_bytes().startswith(b"\x89PNG")
    with np.load(arrays) as kept:
        assert len(kept["spike_steps"]) == values["spikes"] == kept["counts"].sum()
        assert kept["regions"].tolist() == ["ear", "mouth"]
        assert kept["membranes_mv"].shape == (80, 4)
        assert kept["traced"].tolist() == [0, 1, 40, 41]
        counted = np.bincount(kept["spike_steps"][kept["spike_neurons"] < 40], minlength=80)
        assert counted.tolist() == kept["counts"][:, 0].tolist()
        noradrenaline = kept["levels"][:, kept["modulators"].tolist().index("noradrenaline")]
        assert noradrenaline[29] == 1
        assert noradrenaline[30] == 3
        assert 1 < noradrenaline[79] < 3
    assert values["mean_rate_hz"]["ear"] > 0


@pytest.mark.parametrize(
    ("verb", "options", "said"),
    [
        ("simulate", ("--drive", "nois"), ("unknown drive 'nois'", "noise")),
        ("simulate", ("--level", "serotonin"), ("--level 'serotonin' is not NAME=LEVEL",)),
        ("simulate", ("--level", "serotinin=2"), ("unknown modulator 'serotinin'", "serotonin")),
        ("raster", ("--out", "r.txt"), ("r.txt is no picture", ".png")),
        ("raster", ("--out", "nowhere/r.png"), ("there is no folder nowhere",)),
        ("raster", ("--arrays", "r.npy"), ("must end in .npz",)),
        ("raster", ("--release", "dopamine=1"), ("is not NAME=AMOUNT@MS",)),
        ("raster", ("--release", "dopamin=1@3"), ("unknown modulator 'dopamin'",)),
    ],
)
def test_wrong_options_are_one_line(
    run: Run, config: Path, verb: str, options: tuple[str, ...], said: tuple[str, ...]
) -> None:
    run(verb, config, *options).refused(*said)


def test_wrong_networks_are_one_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    run("simulate", path).refused("cannot read the configuration")
    wrong = brain()
    wrong["projections"][0]["delay_ms"] = 0.5
    path.write_text(yaml.safe_dump(wrong), "utf-8")
    run("simulate", path).refused("delay_ms 0.5 is shorter than dt_ms 1")
    path.write_text(yaml.safe_dump(brain(drive={"constant": {"mean_mv": 2}})), "utf-8")
    run("simulate", path, "--steps", "200").refused("population 'ear' never fired in 200 steps", "2.0 mV")


def test_simulate_learns_where_a_projection_says_how(run: Run, tmp_path: Path) -> None:
    wired = brain()
    wired["projections"][0]["plasticity"] = "stdp"
    wired["projections"].append({**wired["projections"][0], "plasticity": "three_factor"})
    path = tmp_path / "plastic.yaml"
    path.write_text(yaml.safe_dump(wired), "utf-8")
    assert run("simulate", path, "--steps", "60", "--json").values["plasticity"] == []
    told = run("simulate", path, "--steps", "60", "--learn", "--json").values["plasticity"]
    assert [one["rule"] for one in told] == ["stdp", "three_factor"]
    assert told[0]["changed"] > 0
    assert told[0]["mean_before"] == pytest.approx(0.5)
    assert told[1]["changed"] == 0, "without dopamine above or below rest nothing is learned by three factors"
    rewarded = run("simulate", path, "--steps", "60", "--learn", "--level", "dopamine=2", "--json").values
    assert rewarded["plasticity"][1]["changed"] > 0


def test_simulate_refuses_to_learn_what_is_not_plastic(run: Run, config: Path) -> None:
    answer = run("simulate", config, "--steps", "5", "--learn")
    assert answer.code == 2
    assert "no projection is plastic" in answer.err


def test_what_was_learned_is_kept_and_runs(run: Run, tmp_path: Path) -> None:
    wired = brain()
    wired["projections"][0]["plasticity"] = "stdp"
    path, out = tmp_path / "plastic.yaml", tmp_path / "learned"
    path.write_text(yaml.safe_dump(wired), "utf-8")
    run("simulate", path, "--steps", "60", "--out", out).refused("add --learn")
    told = run("simulate", path, "--steps", "60", "--learn", "--out", out, "--json").values
    again = run("simulate", out, "--steps", "60", "--learn", "--json").values
    assert again["plasticity"][0]["mean_before"] == pytest.approx(told["plasticity"][0]["mean_after"], abs=1e-9)
    assert told["plasticity"][0]["mean_before"] != told["plasticity"][0]["mean_after"]
    assert run("simulate", out / "brain.yaml", "--steps", "60", "--json").values["synapses"] == told["synapses"]
    assert run("raster", out, "--steps", "40", "--out", tmp_path / "r.png").code == 0
    run("simulate", path, "--steps", "60", "--learn", "--out", out).refused("already exists")
    (out / "synapses.safetensors").unlink()
    run("simulate", out, "--steps", "60").refused("there is no", "synapses.safetensors")
