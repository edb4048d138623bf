"""Settings: what one says, and those that cannot be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pragnosia.errors import ConfigError
from pragnosia.model.setting import WHOLE, Setting


def test_there_and_back() -> None:
    for one in (WHOLE, Setting(awake=0.5, gates=0.25, leave=((1, 0.3), (4, 0.9)), memory="propagated")):
        again = Setting.read(json.loads(json.dumps(one.write())))
        assert again == one
        assert hash(again) == hash(one)
    assert str(WHOLE) == "all of it"
    assert str(Setting(awake=0.5, leave=((2, 0.3),), memory="propagated")) == "awake 0.5, leave 2:0.3 propagated"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"awake": 0}, r"awake is 0; it must lie in \(0, 1\]"),
        ({"awake": 1.5}, "awake is 1.5"),
        ({"awake": float("nan")}, "awake is nan"),
        ({"awake": "much"}, "awake is 'much'"),
        ({"awake": True}, "awake is True"),
        ({"gates": -1}, "gates is -1"),
        ({"leave": ((0, 0.5),)}, r"behind layers \[0\]"),
        ({"leave": ((2, 0.5), (1, 0.5))}, "ascending"),
        ({"leave": ((2, 0.5), (2, 0.7))}, "ascending"),
        ({"leave": ((1.5, 0.5),)}, "whole numbers"),
        ({"leave": ((1, -0.5),)}, "a confidence must be a number, 0 or more"),
        ({"leave": (1, 2)}, "pairs of a layer and a confidence"),
        ({"leave": None}, "pairs of a layer and a confidence"),
        ({"memory": "exakt"}, "Available: exact, propagated"),
        ({"energy": 0.5}, "unknown key in Setting 'energy'"),
    ],
)
def test_what_cannot_be(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Setting.read(values)
