"""Ticks of a picture: those of near values are told apart, and no digit more is written."""

from __future__ import annotations

import pytest

from pragnosia.measure.pictures import Apart
from pragnosia.units import format_bytes, format_count, format_joules


@pytest.mark.parametrize(
    ("written", "values", "expected"),
    [
        (format_count, [14_180, 14_190, 14_200], ["14.18 k", "14.19 k", "14.2 k"]),
        (format_count, [1e6, 2e6], ["1 M", "2 M"]),
        (format_bytes, [13_000, 13_020], ["12.7 KiB", "12.71 KiB"]),
        (format_joules, [1.9e-6, 1.902e-6], ["1.9 uJ", "1.902 uJ"]),
    ],
)
def test_near_ticks_are_told_apart(written: object, values: list[float], expected: list[str]) -> None:
    assert Apart(written).format_ticks(values) == expected  # type: ignore[arg-type]
