"""Calibrated exits on disk, and what a user's wishes come to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.inference.exits import EXITS, Draft, Exit, Exits, chosen_exits, read_exits
from pragnosia.model.setting import WHOLE, Setting


def made(gain: float = 1.5, confidence: float | None = 0.9) -> Exits:
    return Exits(
        num_layers=6,
        vocab_size=100,
        agreement=0.99,
        tokens=4000,
        agreed=0.995,
        layers_per_token=3.5,
        exits=(
            Exit(layer=2, confidence=confidence, left=0.4, agreed=0.99, guesses_right=0.7),
            Exit(layer=4, confidence=None, left=0.0, agreed=None, guesses_right=0.8),
        ),
        draft=Draft(layer=2, confidence=0.4, accepted=0.8, gain=gain),
    )


def test_written_and_read(tmp_path: Path) -> None:
    assert read_exits(tmp_path) is None
    made().write(tmp_path)
    assert read_exits(tmp_path, 6, 100) == made()
    assert [path.name for path in tmp_path.iterdir()] == [EXITS]


def test_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made().write(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        made(gain=3.0).write(tmp_path)
    assert read_exits(tmp_path) == made()
    assert [path.name for path in tmp_path.iterdir()] == [EXITS]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_layers": 4}, "after layer 4 is none"),
        ({"num_layers": "6"}, "num_layers and vocab_size"),
        ({"draft": {"layer": 9, "confidence": 0.1}}, "after layer 9 is none"),
        ({"draft": {"layer": 2, "confidence": 1.5}}, "confidences"),
        ({"exits": [{"layer": 2}]}, "missing"),
        ({"more": 1}, "more"),
    ],
)
def test_damaged_values(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    made().write(tmp_path)
    values = json.loads((tmp_path / EXITS).read_text())
    (tmp_path / EXITS).write_text(json.dumps(values | change))
    with pytest.raises(CheckpointError, match=told) as error:
        read_exits(tmp_path)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize("text", ["{", "[]", "null", '"x"', "\xff"])
def test_no_json_of_ours(text: str, tmp_path: Path) -> None:
    (tmp_path / EXITS).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="calibrate again"):
        read_exits(tmp_path)


def test_of_another_model(tmp_path: Path) -> None:
    made().write(tmp_path)
    with pytest.raises(CheckpointError, match="6 layers, this one has 8"):
        read_exits(tmp_path, 8, 100)
    with pytest.raises(CheckpointError, match="100 tokens in the vocabulary, this one has 101"):
        read_exits(tmp_path, 6, 101)


def wish(
    exits: Exits | None, speculate: bool | None = None, confidence: str | None = None, **more: Any
) -> tuple[Draft | None, Setting]:
    return chosen_exits(exits, "runs/demo", speculate=speculate, confidence=confidence, **more)


def test_wishes() -> None:
    draft = made().draft
    plain = (None, WHOLE)
    assert wish(made()) == wish(made(), True) == (draft, WHOLE)
    assert wish(made(), False) == plain
    assert wish(made(gain=1.05)) == plain, "it does not pay"
    assert wish(made(gain=1.05), True) != plain
    assert wish(None) == plain
    assert wish(None, False) == plain
    assert wish(made(), confidence="calibrated") == (None, Setting(leave=((2, 0.9),)))
    assert wish(made(confidence=None), confidence="calibrated") == plain, "no exit is to be trusted"
    everywhere = Setting(leave=((2, 0.5), (4, 0.5)), memory="propagated")
    assert wish(made(), confidence="0.5", memory="propagated") == (None, everywhere)


@pytest.mark.parametrize("confidence", ["0", "1.5", "-1", "nan", "inf", "much"])
def test_impossible_confidence(confidence: str) -> None:
    with pytest.raises(ConfigError, match=r"it must lie in \(0, 1\]"):
        wish(made(), confidence=confidence)


def test_impossible_wishes() -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        wish(made(), True, "0.5")
    with pytest.raises(ConfigError, match="Available: exact, propagated"):
        wish(made(), confidence="0.5", memory="exakt")
    for options in ((True, None), (None, "0.5"), (None, "calibrated")):
        with pytest.raises(CheckpointError, match="pragnosia calibrate runs/demo --data TEXT"):
            wish(None, *options)
