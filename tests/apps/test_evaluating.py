"""`eval`: what is refused before anything is loaded, and energies side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("eval", "--energy", "3"), ("energy is 3.0",)),
        (("eval", "--energy", "1,7"), ("energy is 7.0",)),
        (("eval", "--energy", "1,much"), ("energy is 'much'", "draft, answer, think")),
        (("eval", "--energy", "1,0.5"), ("is not calibrated", "pragnosia calibrate")),
        (("eval", "--awake", "0"), ("awake is 0.0",)),
        (("eval", "--energy", "0.5", "--awake", "0.5"), ("--energy sets all there is to set",)),
        (("eval", "--energy", "0.5", "--exit-confidence", "0.5"), ("--energy sets all there is to set",)),
        (("eval", "--max-bytes", "zz"), ("--max-bytes", "zz")),
        (("eval", "--context", "0"), ("--context",)),
        (("eval", "--stride", "-1"), ("--stride",)),
        (("eval", "--data", "no-such-file.txt"), ("no-such-file.txt",)),
        (("eval", "--data", "wikipedai"), ("wikipedia",)),
    ],
)
def test_wrong_options_are_told_at_once(
    at_once: Run, model: Path, story: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    verb, *rest = options
    at_once(verb, model, "--data", story, *rest).refused(*words)


def test_a_missing_model_is_told_at_once(at_once: Run, story: Path, tmp_path: Path) -> None:
    for verb in ("eval", "calibrate"):
        at_once(verb, tmp_path / "none", "--data", story).refused("no model directory at")


def test_a_frontier_of_energies(run: Run, calibrated: Path, story: Path, tmp_path: Path) -> None:
    picture = tmp_path / "frontier.png"
    given = ("eval", calibrated, "--data", story, "--max-bytes", "2KiB", "--energy")
    values = run(*given, "1,0.9,draft", "--plot", picture, "--json").values
    high, some, low = values["frontier"]
    assert [high["energy"], some["energy"], low["energy"]] == [1.0, 0.9, "draft"]
    assert low["operations_per_token"] <= some["operations_per_token"] < high["operations_per_token"]
    assert low["units_awake"] < high["units_awake"]
    assert low["layers_used"] <= high["layers_used"] == 2
    assert low["bits_per_byte"] == run(*given, "draft", "--json").values["bits_per_byte"]
    assert min(high["tokens_per_second"], low["tokens_per_second"], high["joules_per_token"]) > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    whole = run(*given, "1", "--json").values
    assert "frontier" not in whole
    assert "setting" not in whole
    assert whole["bits_per_byte"] == high["bits_per_byte"]
    told = run(*given, "1,draft")
    assert "tokens/s" in told.out
    assert "all of it" in told.out


def test_one_mechanism_alone(run: Run, model: Path, story: Path) -> None:
    """Without a calibration."""
    given = ("eval", model, "--data", story, "--max-bytes", "2KiB", "--json")
    whole, half = run(*given).values, run(*given, "--awake", 0.5).values
    assert half["operations_per_token"] < whole["operations_per_token"]
    assert half["setting"]["awake"] == 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--energy", "1", "--plot", "x.png"), "takes several energies"),
        (("--energy", "1,0.5", "--plot", "nowhere/x.png"), "there is no folder"),
        (("--energy", "1,2"), "energy is 2.0"),
        (("--energy", "half"), "energy is 'half'"),
        (("--energy", "1,0.5", "--exit-confidence", "0.9"), "--energy sets all there is to set"),
    ],
)
def test_a_frontier_that_cannot_be(run: Run, model: Path, story: Path, options: tuple[str, ...], words: str) -> None:
    outcome = run("eval", model, "--data", story, *options)
    assert outcome.code != 0
    assert words in outcome.err
