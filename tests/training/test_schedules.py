"""Schedules: the rate starts low, peaks at one and ends at its floor; lengths double and keep every token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pragnosia.errors import ConfigError
from pragnosia.training.schedules import (
    SHAPES,
    ScheduleConfig,
    check_lengths,
    length_at,
    rate_factor,
)


@pytest.mark.parametrize("name", sorted(SHAPES))
@given(warmup=st.integers(0, 40), steps=st.integers(41, 300), floor=st.floats(0, 1))
def test_rates_stay_between_zero_and_one(name: Any, warmup: int, steps: int, floor: float) -> None:
    config = ScheduleConfig(name=name, warmup_steps=warmup, floor=floor)
    rates = [rate_factor(config, step, steps) for step in range(steps)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[warmup] == pytest.approx(1.0)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_cosine_by_hand() -> None:
    config = ScheduleConfig(name="cosine", warmup_steps=10, floor=0.1)
    assert rate_factor(config, 0, 110) == pytest.approx(0.1)
    assert rate_factor(config, 60, 110) == pytest.approx(0.55)
    assert rate_factor(config, 110, 110) == pytest.approx(0.1)


def test_warmup_stable_decay_by_hand() -> None:
    config = ScheduleConfig(name="wsd", warmup_steps=0, decay_fraction=0.2, floor=0.0)
    assert [rate_factor(config, step, 100) for step in (0, 50, 80)] == pytest.approx([1, 1, 1])
    assert rate_factor(config, 90, 100) == pytest.approx(0.5)
    assert rate_factor(config, 100, 100) == pytest.approx(0.0)


def test_lengths_double_until_full() -> None:
    config = ScheduleConfig(first_length=32, length_warmup_steps=30)
    lengths = [length_at(config, step, 256) for step in range(40)]
    assert list(dict.fromkeys(lengths)) == [32, 64, 128, 256]
    assert lengths[30] == 256
    assert length_at(ScheduleConfig(), 0, 256) == 256


@pytest.mark.parametrize("first", [3, 48, 512])
def test_lengths_that_do_not_double_to_full(first: int) -> None:
    with pytest.raises(ConfigError, match="first_length"):
        check_lengths(ScheduleConfig(first_length=first, length_warmup_steps=10), 256)


@pytest.mark.parametrize("bad", [{"floor": 2.0}, {"warmup_steps": -1}, {"first_length": 32}, {"decay_fraction": -0.1}])
def test_impossible_options(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        ScheduleConfig(**bad)
