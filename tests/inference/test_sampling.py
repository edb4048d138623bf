"""What a speaker is asked for: refused in one line where it cannot be, and without loading torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from pragnosia.errors import ConfigError, PromptError
from pragnosia.inference.sampling import Sampling, check_energy, check_room


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0; it must be 1 or more"),
        ({"top_k": -3}, "top_k is -3"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be in"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": -0.1}, "min_p is -0.1; it must be in"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be greater than 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
        ({"seed": 2**70}, "seed is 1180591620717411303424; it must be"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"stop": ("",)}, "stop is"),
        ({"stop": ("a", "")}, "stop is"),
        ({"stop": 5}, "stop is 5; it must be a text"),
        ({"stop": [5]}, "stop is"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be 0"),
        ({"temperature": None}, "temperature is None"),
        ({"top_p": "most"}, "top_p is 'most'"),
        ({"top_k": True}, "top_k is True"),
    ],
    ids=str,
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        Sampling.of(options)
    assert "\n" not in str(caught.value)


def test_one_stop_text_is_one_stop_text() -> None:
    assert Sampling(stop="User:").stop == ("User:",)  # type: ignore[arg-type]
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


def test_an_unknown_option_names_the_nearest() -> None:
    assert Sampling.of({"top_k": 3}) == Sampling(top_k=3)
    with pytest.raises(PromptError, match=r"unknown option 'topk'. Did you mean 'top_k'\? Available: energy, min_p"):
        Sampling.of({"topk": 3}, besides=("energy",))
    with pytest.raises(PromptError, match="Did you mean 'stop'"):
        Sampling.of({"stop_strings": ["a"]})


def test_numbers_of_other_libraries_are_numbers() -> None:
    assert Sampling(temperature=np.float32(0.5), top_k=np.int64(3)).top_k == 3  # type: ignore[arg-type]
    check_room(np.int32(1), np.float32(0.5))


@pytest.mark.parametrize("room", [0, -1, 2.0, None, "3", True])
def test_no_room(room: Any) -> None:
    with pytest.raises(PromptError, match="max_new_tokens is"):
        check_room(room)


@pytest.mark.parametrize("energy", [0, -1, 1.01, float("nan"), None, "half", True])
def test_no_such_energy(energy: Any) -> None:
    with pytest.raises(ConfigError, match=r"energy is .*; it must lie in \(0, 1\]"):
        check_energy(energy)


def test_nothing_heavy_is_loaded() -> None:
    script = "import sys, pragnosia.inference.sampling; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
