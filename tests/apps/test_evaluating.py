"""`eval` and `energy`: what is refused before anything is loaded."""

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
        (("energy", "--at", "1,7"), ("energy is 7.0",)),
        (("energy", "--at", "1,much"), ("--at",)),
        (("eval", "--max-bytes", "zz"), ("--max-bytes", "zz")),
        (("eval", "--context", "0"), ("--context",)),
        (("eval", "--stride", "-1"), ("--stride",)),
        (("eval", "--data", "no-such-file.txt"), ("no-such-file.txt",)),
        (("energy", "--data", "wikipedai"), ("wikipedia",)),
    ],
)
def test_wrong_options_are_told_at_once(
    at_once: Run, model: Path, story: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    verb, *rest = options
    at_once(verb, model, "--data", story, *rest).refused(*words)


def test_a_missing_model_is_told_at_once(at_once: Run, story: Path, tmp_path: Path) -> None:
    for verb in ("eval", "energy"):
        at_once(verb, tmp_path / "none", "--data", story).refused("no model directory at")


def test_a_frontier_of_energies(run: Run, model: Path, story: Path, tmp_path: Path) -> None:
    picture = tmp_path / "frontier.png"
    given = ("eval", model, "--data", story, "--max-bytes", "2KiB", "--energy", "1,0.5")
    values = run(*given, "--plot", picture, "--json").values
    high, low = values["frontier"]
    assert [high["energy"], low["energy"]] == [1.0, 0.5]
    assert low["operations_per_token"] < high["operations_per_token"]
    assert low["units_awake"] < high["units_awake"]
    assert low["bits_per_byte"] == run(*given[:-1], "0.5", "--json").values["bits_per_byte"]
    assert min(high["tokens_per_second"], low["tokens_per_second"], high["joules_per_token"]) > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "frontier" not in run(*given[:-1], "1", "--json").values
    assert "tokens/s" in run(*given).out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--energy", "1", "--plot", "x.png"), "takes several energies"),
        (("--energy", "1,0.5", "--plot", "nowhere/x.png"), "there is no folder"),
        (("--energy", "1,2"), "energy is 2.0"),
        (("--energy", "half"), "--energy is 'half'"),
        (("--energy", "1,0.5", "--exit-confidence", "0.9"), "speaks with all layers"),
    ],
)
def test_a_frontier_that_cannot_be(run: Run, model: Path, story: Path, options: tuple[str, ...], words: str) -> None:
    outcome = run("eval", model, "--data", story, *options)
    assert outcome.code != 0
    assert words in outcome.err
