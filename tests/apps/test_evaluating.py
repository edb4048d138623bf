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


def test_energies_that_come_to_one_setting_are_measured_once(
    run: Run, calibrated: Path, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stand side by side all the same."""
    from pragnosia.measure import evaluation, frontier

    settings = []

    def counted(do: Callable[..., Any]) -> Callable[..., Any]:
        def done(*given: Any, **more: Any) -> Any:
            found = do(*given, **more)
            settings.append(more.get("setting") or found.setting)
            return found

        return done

    monkeypatch.setattr(evaluation, "evaluate", counted(evaluation.evaluate))
    monkeypatch.setattr(frontier, "point", counted(frontier.point))
    given = ("eval", calibrated, "--data", story, "--max-bytes", "1KiB", "--json", "--energy", "1.0,draft,0.01,draft,1")
    table = run(*given).values["frontier"]
    assert [one["energy"] for one in table] == [1.0, "draft", 0.01, "draft", 1.0]
    assert len(settings) == 4, "two settings, read and decoded"
    assert len(set(settings)) == 2
    for one, other in ((0, 4), (1, 2), (1, 3)):
        assert table[one] | {"energy": 0} == table[other] | {"energy": 0}


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "JPG", "jpeg", "webp"])
def test_a_picture_is_what_its_name_says(tmp_path: Path, ending: str) -> None:
    from matplotlib.figure import Figure

    from pragnosia.measure.pictures import save

    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    save(figure, tmp_path / f"x.{ending}")
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "jpg": b"\xff\xd8\xff", "webp": b"RIFF"}
    assert (tmp_path / f"x.{ending}").read_bytes().startswith(begins[ending.lower().replace("jpeg", "jpg")])
    assert len(list(tmp_path.iterdir())) == 1


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
        (("--energy", "1,0.5", "--plot", "x.gif"), "end it in one of .png, .svg, .pdf, .jpg, .jpeg, .webp"),
        (("--energy", "1,0.5", "--plot", "x"), "--plot x: a picture's name says what it is written as"),
        (("--energy", "1,2"), "energy is 2.0"),
        (("--energy", "half"), "energy is 'half'"),
        (("--energy", "1,0.5", "--exit-confidence", "0.9"), "--energy sets all there is to set"),
    ],
)
def test_a_frontier_that_cannot_be(run: Run, model: Path, story: Path, options: tuple[str, ...], words: str) -> None:
    outcome = run("eval", model, "--data", story, *options)
    assert outcome.code != 0
    assert words in outcome.err
