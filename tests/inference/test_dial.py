"""The dial on disk, and what it is turned to: less energy never costs more."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pragnosia import Pragnosia
from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.inference.dial import ENERGY, INTENTS, Dial, Notch, model_print, needed_dial, read_dial
from pragnosia.model.setting import WHOLE, Setting


def notch(setting: Setting, joules: float, bits: float, operations: float | None = None, agreed: float = 1.0) -> Notch:
    return Notch(
        setting=setting,
        bits_per_byte=bits,
        agreed=agreed,
        operations_per_token=joules if operations is None else operations,
        bytes_per_token=joules,
        joules_per_token=joules,
        layers_used=2.0,
        units_awake=3.0,
    )


def made(*notches: Notch, model: str = "a print") -> Dial:
    whole = notch(WHOLE, 100.0, 2.0)
    return Dial(
        model=model,
        num_layers=2,
        energy_model="circuit-7nm-ddr",
        data=("text",),
        tokens=4000,
        context=100.5,
        notches=(whole, *notches),
    )


def usual(**more: Any) -> Dial:
    return made(
        notch(Setting(awake=0.5), 60.0, 2.03),
        notch(Setting(leave=((1, 0.5),), memory="propagated"), 50.0, 2.02),
        notch(Setting(awake=0.25), 30.0, 2.5),
        **more,
    )


def test_the_best_that_costs_as_little() -> None:
    dial = usual()
    half, leaving, least = (one.setting for one in dial.notches[1:])
    assert [dial.at(energy).setting for energy in (1, 0.99, 0.6, 0.5, 0.49, 0.3)] == [
        *(WHOLE, leaving, leaving, leaving, least, least)
    ]
    assert dial.at(0.7, leaving=False).setting == half, "where no token can leave"
    assert dial.at(0.1).setting == least
    told = dial.excess(dial.at(0.1), 0.1)
    assert told is not None
    assert "energy 0.1 is below the cheapest setting there is, which takes 0.3" in told
    assert dial.excess(dial.at(0.3), 0.3) is None
    assert dial.excess(dial.at("draft"), "draft") is None


def test_intents() -> None:
    dial = usual()
    assert [dial.at(intent).joules_per_token for intent in INTENTS] == [30, 50, 100]
    assert dial.at("answer", leaving=False).setting == Setting(awake=0.5)


def test_an_answer_has_the_whole_models_words() -> None:
    """On a foreign text everything is predicted as badly, and the bits alone would let every token leave at once."""
    leave = Setting(leave=((1, 0.01),), memory="propagated")
    half, more = Setting(awake=0.5), Setting(awake=0.75)
    foreign = made(
        notch(leave, 20, 1.99, agreed=0.4), notch(half, 60, 2.0, agreed=0.89), notch(more, 80, 2.0, agreed=0.9)
    )
    assert foreign.at("answer").setting == more, "though another costs less and predicts better"
    assert foreign.at("draft").setting == foreign.at(0.5).setting == leave
    assert foreign.at("answer", leaving=False).setting == more
    assert made(notch(leave, 20, 1.9, agreed=0.4)).at("answer").setting == WHOLE
    assert made(notch(half, 60, 2.05, agreed=1.0)).at("answer").setting == WHOLE, "the bits count, too"


@given(
    st.lists(st.tuples(st.floats(1, 150), st.floats(1.5, 4), st.floats(1, 150)), min_size=1, max_size=12),
    st.lists(st.floats(0.01, 1), min_size=2, max_size=6),
)
def test_less_energy_never_costs_more(figures: list[tuple[float, float, float]], energies: list[float]) -> None:
    notches = [notch(Setting(awake=1 / (n + 2)), *figure) for n, figure in enumerate(figures)]
    dial = made(*notches)
    found = [dial.at(energy) for energy in sorted(energies)]
    for one, more in itertools.pairwise(found):
        assert one.operations_per_token <= more.operations_per_token
        assert one.joules_per_token <= more.joules_per_token
    for energy, one in zip(sorted(energies), found, strict=True):
        assert one in dial.notches
        if energy < 1 and dial.excess(one, energy) is None:
            monotone = [x for x in dial.frontier() if x.joules_per_token <= 100 * energy + 1e-6]
            assert one.bits_per_byte == min(x.bits_per_byte for x in monotone)
    assert dial.at(1) == dial.at("think") == dial.whole


@pytest.mark.parametrize("energy", [0, -1, 1.01, float("nan"), None, "half", True, [0.5]])
def test_no_such_energy(energy: Any) -> None:
    with pytest.raises(ConfigError, match=r"it must lie in \(0, 1\], where 1 is the whole model, or be one of draft"):
        usual().at(energy)


@pytest.fixture
def model(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / "model"))


def test_written_and_read(model: Path) -> None:
    assert read_dial(model) is None
    with pytest.raises(ConfigError, match=f"pragnosia calibrate {model} --data TEXT"):
        needed_dial(model)
    dial = usual(model=model_print(model))
    dial.write(model)
    assert read_dial(model) == dial
    assert not list(model.glob(".*")), "nothing else is left there"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_layers": "2"}, "num_layers is '2'"),
        ({"num_layers": 1}, "an exit after layer 1 is none"),
        ({"notches": []}, "its first notch is not the whole model"),
        ({"notches": None}, "no calibration"),
        ({"more": 1}, "more"),
        ({"data": None}, "no calibration"),
        ({"notches": [asdict(notch(WHOLE, 100.0, 2.0, agreed=0.9))]}, "agree with itself"),
    ],
)
def test_damaged_values(change: dict[str, Any], told: str, model: Path) -> None:
    usual(model=model_print(model)).write(model)
    values = json.loads((model / ENERGY).read_text())
    (model / ENERGY).write_text(json.dumps(values | change))
    with pytest.raises(CheckpointError, match=told) as error:
        read_dial(model)
    assert "calibrate again" in str(error.value)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    "change",
    [
        {"joules_per_token": 0},
        {"bits_per_byte": "2"},
        {"layers_used": -1},
        {"agreed": 1.1},
        {"agreed": None},
        {"setting": {"awake": 2}},
        {"x": 1},
    ],
)
def test_damaged_notches(change: dict[str, Any], model: Path) -> None:
    usual(model=model_print(model)).write(model)
    values = json.loads((model / ENERGY).read_text())
    values["notches"][1] |= change
    (model / ENERGY).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="is no calibration"):
        read_dial(model)


@pytest.mark.parametrize("text", ["{", "[]", "null", "[" * 5000, "\xff"])
def test_no_json_of_ours(text: str, model: Path) -> None:
    (model / ENERGY).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="calibrate again"):
        read_dial(model)


def test_of_another_model(model: Path) -> None:
    usual(model=model_print(model)).write(model)
    weights = model / "model.safetensors"
    held = bytearray(weights.read_bytes())
    held[len(held) // 2 :] = bytes(len(held) - len(held) // 2)  # trained on
    weights.write_bytes(held)
    with pytest.raises(CheckpointError, match="on another model, or before this one changed; calibrate again"):
        read_dial(model)


# -- a speaker at an energy


def test_energy_1_is_the_whole_model(model: Path, speaker: Pragnosia) -> None:
    """Calibrated or not, even beside a damaged dial."""
    said = speaker.generate_tokens([1, 2, 3], max_new_tokens=12)
    assert speaker.turned() == speaker.turned("think") == WHOLE
    usual(model=model_print(model)).write(model)
    calibrated = Pragnosia.from_pretrained(model)
    assert calibrated.turned(1) == calibrated.turned("think") == WHOLE
    assert calibrated.generate_tokens([1, 2, 3], max_new_tokens=12, energy=1.0) == said
    (model / ENERGY).write_text("{")
    assert Pragnosia.from_pretrained(model).generate_tokens([1, 2, 3], max_new_tokens=12) == said


def test_less_is_looked_up(model: Path) -> None:
    usual(model=model_print(model)).write(model)
    speaker = Pragnosia.from_pretrained(model)
    least = Setting(awake=0.25)
    assert speaker.turned(0.3) == speaker.turned("draft") == least
    ids = [1, 2, 3]
    said = speaker.generate_tokens(ids, max_new_tokens=12, energy=0.3)
    assert said == speaker.generate_tokens(ids, max_new_tokens=12, setting=least)
    with pytest.warns(UserWarning, match="energy 0.1 is below the cheapest setting"):
        assert speaker.turned(0.1) == least
    with pytest.raises(ConfigError, match="energy and setting exclude each other"):
        speaker.turned(0.5, least)


def test_not_calibrated(speaker: Pragnosia) -> None:
    for energy in (0.5, "draft"):
        with pytest.raises(ConfigError, match="is not calibrated, and energy below 1 is chosen from what was measured"):
            speaker.generate("the", energy=energy)
    with pytest.raises(ConfigError, match="run: pragnosia calibrate the model"):
        Pragnosia(speaker.model).turned(0.5)
