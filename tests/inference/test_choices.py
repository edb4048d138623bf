"""Devices and types as users of transformers and accelerate give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig

from pragnosia import Pragnosia
from pragnosia.errors import UserError
from pragnosia.inference.choices import chosen_bits, chosen_budgets, chosen_device, chosen_dtype, spread_places


@pytest.mark.parametrize(
    ("device", "device_map", "expected"),
    [
        (None, None, "cpu"),
        ("cuda:1", None, "cuda:1"),
        (None, "cpu", "cpu"),
        (None, {"": "cpu"}, "cpu"),
        (None, {"": 0}, "cuda:0"),
        (None, 1, "cuda:1"),
        (None, torch.device("cuda", 2), "cuda:2"),
        (None, {"model": 0, "lm_head": "cuda:0"}, "cuda:0"),
        (None, {"model": "cuda", "lm_head": 0}, "cuda:0"),
        ("cpu", {"": "cpu"}, "cpu"),
    ],
)
def test_one_device(device: Any, device_map: Any, expected: str) -> None:
    assert chosen_device(device, device_map) == expected


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("kind", ["auto", "balanced", "sequential"])
def test_automatic(there: bool, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert chosen_device(None, kind) == ("cuda" if there else "cpu")
    assert chosen_device(None, kind, in_budget=True) == "cpu"


@pytest.mark.parametrize(
    ("device_map", "expected"),
    [
        (None, None),
        ("auto", None),
        (0, None),
        ({"": "cpu"}, None),
        ({"model": 0, "lm_head": "cuda:0"}, None),
        ({"model": 0, "lm_head": "cuda"}, None),
        ("disk", {"": "disk"}),
        ({"": "disk"}, {"": "disk"}),
        ({"model": "cpu", "lm_head": "disk"}, {"model": "cpu", "lm_head": "disk"}),
        (
            {"model": "cuda", "model.layers.1": torch.device("cuda", 0), "lm_head": "cpu"},
            {"model": "cuda:0", "model.layers.1": "cuda:0", "lm_head": "cpu"},
        ),
    ],
)
def test_several_places(device_map: Any, expected: dict[str, str] | None) -> None:
    assert spread_places(device_map) == expected


@pytest.mark.parametrize(
    ("device_map", "words"),
    [
        ({"model.layers.0": 0, "model.layers.1": 1}, "spreads the model over cuda:0, cuda:1; here it may be on one"),
        ({"model": 0, "lm_head": "mps"}, "spreads the model over cuda:0, mps"),
        ({"model": "cpu", "lm_head": "meta"}, "spreads the model over meta"),
        ({"": "meta"}, "device_map names meta"),
        ({}, "device_map names no place"),
        ({"": 1.5}, r"a device is 1\.5"),
    ],
)
def test_maps_that_are_refused(device_map: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as told:
        spread_places(device_map)
    assert "\n" not in str(told.value)


def test_a_device_and_a_map() -> None:
    with pytest.raises(UserError, match="device is 'cuda' and device_map says 'cpu'"):
        chosen_device("cuda", {"": "cpu"})


@pytest.mark.parametrize(
    ("max_memory", "expected"),
    [
        (None, (None, None)),
        ({"cpu": "4GiB"}, ("4GiB", None)),
        ({"cpu": "16GiB", 0: "4GiB"}, ("16GiB", "4GiB")),
        ({"cpu": 1 << 30, "cuda:1": 1 << 29}, (1 << 30, 1 << 29)),
    ],
)
def test_max_memory_names_both_budgets(max_memory: Any, expected: tuple[Any, Any]) -> None:
    assert chosen_budgets(None, None, max_memory) == expected


@pytest.mark.parametrize("given", [{0: "4GiB"}, {}, {"cpu": 1, 0: 1, 1: 1}, {"cpu": 1, "disk": 1}])
def test_max_memory_that_is_refused(given: Any) -> None:
    with pytest.raises(UserError, match="max_memory names"):
        chosen_budgets(None, None, given)
    with pytest.raises(UserError, match="another name of memory"):
        chosen_budgets("4GiB", None, given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((False, False, None), None),
        ((False, True, None), "int4"),
        ((False, False, BitsAndBytesConfig(load_in_4bit=True)), "int4"),
        ((False, False, BitsAndBytesConfig(load_in_8bit=True)), "int8"),
        ((False, False, {"load_in_8bit": True}), "int8"),
    ],
)
def test_bits(given: tuple[bool, bool, Any], expected: str | None) -> None:
    assert chosen_bits(*given) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((True, True), "exclude each other"),
        ((True, False, {"load_in_4bit": True}), "exclude each other"),
        ((False, False, {"quant_method": "gptq"}), "asks for neither"),
    ],
)
def test_bits_that_are_refused(given: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        chosen_bits(*given)


def test_types() -> None:
    assert chosen_dtype("auto") == chosen_dtype(None, None) == "auto"
    assert chosen_dtype("auto", torch.bfloat16) == chosen_dtype("bfloat16", "auto") == torch.bfloat16
    assert chosen_dtype("torch.float32", torch.float32) == torch.float32
    with pytest.raises(UserError, match=r"torch_dtype is torch\.float32; give one"):
        chosen_dtype("bfloat16", torch.float32)
    for wrong in ("float99", "int8", 3):
        with pytest.raises(UserError, match="expected auto, float32 or bfloat16"):
            chosen_dtype(wrong)  # type: ignore[arg-type]


def test_a_model_is_loaded_as_asked(directory: Path) -> None:
    for wishes in ({"torch_dtype": torch.bfloat16}, {"dtype": "bfloat16", "device_map": {"": "cpu"}}):
        assert Pragnosia.from_pretrained(directory, **wishes).model.dtype == torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="cannot use the device 'cuda:0'"):
            Pragnosia.from_pretrained(directory, device_map={"": 0})
