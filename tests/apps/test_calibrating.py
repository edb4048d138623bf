"""`calibrate`, and the options of `generate`, `chat` and `eval` that stand on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pragnosia import kernels
from pragnosia.model.setting import WHOLE

Run = Callable[..., Any]
SAY = ("Once upon a time", "--max-new-tokens", 30)


def test_what_is_written_and_said(run: Run, calibrated: Path, story: Path) -> None:
    written = json.loads((calibrated / "exits.json").read_text())
    values = run("calibrate", calibrated, "--data", story, "--agreement", 0.6, "--layers", 1, "--json").values
    assert written == {key: value for key, value in values.items() if key not in ("model", "data", "dial")}
    kept = json.loads((calibrated / "energy.json").read_text())
    assert kept["notches"] == values["dial"]["notches"]
    assert kept["notches"][0]["setting"] == WHOLE.write() | {"leave": []}
    costs = [notch["joules_per_token"] for notch in kept["notches"]]
    assert len(costs) > 1
    assert costs[0] == max(costs)
    plain = run("calibrate", calibrated, "--data", story, "--agreement", 0.6, "--layers", 1)
    assert plain.code == 0
    assert "drafting" in plain.out
    assert "all of it" in plain.out


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_the_same_words(run: Run, calibrated: Path) -> None:
    plain = run("generate", calibrated, *SAY, "--no-speculate", "--json").values
    ahead = run("generate", calibrated, *SAY, "--speculate", "--json").values
    assert ahead["text"] == plain["text"]
    assert ahead["decoding"] == "speculative"
    assert plain["decoding"] == "compiled"
    assert 0 <= ahead["drafts_accepted"] <= 1
    assert ahead["layers_per_token"] >= 2
    assert "layers_per_token" not in plain
    assert ahead["operations_per_token"] > 0
    told = run("generate", calibrated, *SAY, "--speculate", "--stats")
    assert "layers computed per token" in told.err
    assert "[decoding: speculative;" in told.err


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("memory", ["exact", "propagated"])
def test_leaving_early(run: Run, calibrated: Path, memory: str) -> None:
    values = run("generate", calibrated, *SAY, "--exit-confidence", 0.004, "--exit-memory", memory, "--json").values
    assert values["decoding"] == "leaving early"
    assert sum(values["left_after_layer"].values()) == 29
    assert values["left_after_layer"]["1"] > 0
    if memory == "propagated":
        assert 1 <= values["layers_per_token"] < 2


def test_chat_and_eval(
    run: Run, calibrated: Path, story: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    turns = tmp_path / "turns"
    turns.write_text("hello\n", "utf-8")
    answers = []
    for option in ("--speculate", "--no-speculate"):
        with turns.open(encoding="utf-8") as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            answers.append(run("chat", calibrated, "--max-new-tokens", 20, "--seed", 1, option, "--json").values)
    assert answers[0] == answers[1]
    whole, early = (
        run("eval", calibrated, "--data", story, *options, "--json").values
        for options in ((), ("--exit-confidence", 0.004))
    )
    assert whole["layers_per_token"] == 2 > early["layers_per_token"] >= 1
    assert early["bits_per_byte"] != whole["bits_per_byte"]


def test_refused_before_anything_is_loaded(at_once: Run, model: Path) -> None:
    at_once("generate", model, "hi", "--speculate").refused("no calibrated exits", "pragnosia calibrate")


def test_refused(run: Run, calibrated: Path, model: Path, story: Path, tmp_path: Path) -> None:
    run("calibrate", model, "--data", story, "--layers", 2).refused("an exit after layer 2 is none", "2 layers")
    run("calibrate", model, "--data", story, "--agreement", 2).refused("the agreement is 2")
    run("calibrate", model, "--data", story, "--layers", "1;2").refused("whole numbers separated by commas")
    run("generate", calibrated, "hi", "--exit-confidence", "2").refused("it must lie in (0, 1]")
    run("eval", model, "--data", story, "--exit-confidence", "calibrated").refused("no calibrated exits")
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time there was a small brain.", "utf-8")
    run("calibrate", model, "--data", short).refused("the text has", "calibrating to an agreement of 0.99 takes 2000")
    assert not (model / "exits.json").exists()
    assert not (model / "energy.json").exists()
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "exits.json").write_text("{", "utf-8")
    run("generate", broken, "hi").refused("exits.json is damaged", "calibrate again")
    assert run("calibrate", broken, "--data", story, "--agreement", 0.6, "--layers", 1).code == 0


def test_who_cannot_leave_early_is_told_so(run: Run, calibrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pragnosia.inference.speaker.Pragnosia.leaves_early", property(lambda speaker: False))
    assert "all layers speak" in run("generate", calibrated, *SAY, "--exit-confidence", "0.5").err
