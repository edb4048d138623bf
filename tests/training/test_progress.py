"""Progress: what a person reads, in a terminal and in a file."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from pragnosia.training.progress import Bar, Reporter, Silent

RECORD = {
    "step": 5,
    "loss": 3.25,
    "bits_per_byte": 1.5,
    "validation_bits_per_byte": 1.75,
    "tokens_per_second": 4321.0,
    "seconds_per_step": 0.5,
    "units": 16,
    "units_awake": 2.0,
    "dead_units": 3,
}


@pytest.mark.parametrize("terminal", [True, False])
def test_loss_bits_speed_time_left_and_units_are_shown(terminal: bool) -> None:
    written = StringIO()
    bar = Bar(Console(file=written, force_terminal=terminal, width=200, highlight=False))
    bar.start(10, 4)
    bar.advance(5, RECORD)
    bar.advance(6, None)
    bar.stop()
    text = written.getvalue()
    for part in ("/10", "loss 3.250", "1.500 bits/byte", "held out 1.750", "4.32 k tok/s", "2 of 16 awake", "3 dead"):
        assert part in text
    assert ("2.5 s left" in text) is not terminal


def test_a_dense_model_has_no_units() -> None:
    written = StringIO()
    bar = Bar(Console(file=written, force_terminal=False, width=200))
    bar.start(10, 0)
    bar.advance(1, {key: value for key, value in RECORD.items() if "unit" not in key})
    assert "awake" not in written.getvalue()


def test_both_are_reporters() -> None:
    reporters: list[Reporter] = [Bar(Console(file=StringIO())), Silent()]
    for reporter in reporters:
        reporter.stop()
