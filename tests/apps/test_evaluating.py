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
