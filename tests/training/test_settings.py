"""Settings: files and `--set`, read without torch; an override of steps takes the place of tokens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pragnosia.errors import ConfigError
from pragnosia.training.configuration import read_config
from pragnosia.training.settings import read_settings


@pytest.mark.parametrize(
    ("values", "overrides", "expected"),
    [
        ({"tokens": 1e6}, ["steps=2"], {"steps": 2}),
        ({"steps": 9}, ["tokens=1e6"], {"tokens": "1e6"}),
        ({"steps": 9}, ["steps=2"], {"steps": 2}),
        ({"steps": 9}, ["tokens=null"], {"steps": 9, "tokens": None}),
        ({"steps": 9, "tokens": None}, ["seed=1"], {"steps": 9, "tokens": None, "seed": 1}),
        ({"steps": 9}, ["steps=2", "tokens=5"], {"steps": 2, "tokens": 5}),
    ],
)
def test_steps_and_tokens_take_each_others_place(
    values: dict[str, Any], overrides: list[str], expected: dict[str, Any]
) -> None:
    before = dict(values)
    assert read_settings(values, overrides) == expected
    assert values == before


def test_the_run_is_as_long_as_was_said_last() -> None:
    assert read_config({"tokens": 1e6}, ["steps=2"]).num_steps == 2
    assert read_config({"steps": 2}, ["tokens=8192"]).num_steps == 2
    with pytest.raises(ConfigError, match="exactly one of steps and tokens"):
        read_config({}, ["steps=2", "tokens=8192"])


def test_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    script = (
        "import sys; from pragnosia.training.settings import read_settings; read_settings({}, ['a.b=1']); "
        "print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
