"""Progress: what a person reads, in a terminal and in a file."""

from __future__ import annotations

import time
from io import StringIO

import pytest
from rich.console import Console
from rich.progress import Progress

from pragnosia.training.progress import Bar, Reporter, Silent, Within

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


def test_within_a_step_its_seconds_and_what_comes_from_disk_are_shown() -> None:
    now, read = [100.0], [5 << 20]
    within = Within(lambda: read[0], clock=lambda: now[0])
    task = Progress().tasks
    shown = []
    for _ in range(8):
        shown.append(within.render(task).plain)  # type: ignore[arg-type]
        now[0], read[0] = now[0] + 1, read[0] + (3 << 20)
    assert shown[0] == "0 s in step"
    assert shown[7] == "7 s in step  3 MiB/s from disk"
    for _ in range(7):  # the disk is done: it is forgotten after a while
        shown.append(within.render(task).plain)  # type: ignore[arg-type]
        now[0] += 1
    assert shown[-1].endswith("0 B/s from disk")
    within.begin()
    assert within.render(task).plain.startswith("0 s in step")  # type: ignore[arg-type]


def test_lines_of_a_log_say_what_came_from_disk_since_the_last() -> None:
    now, read, written = [100.0], [5 << 20], StringIO()
    bar = Bar(Console(file=written, force_terminal=False, width=200, highlight=False))
    bar.within = Within(lambda: read[0], clock=lambda: now[0])
    bar.start(10, 4)
    for step, taken in ((5, 30 << 20), (6, 6 << 20)):
        now[0], read[0] = now[0] + 3, read[0] + taken
        bar.advance(step, RECORD)
    first, second = written.getvalue().splitlines()
    assert first.endswith("  10 MiB/s from disk  2.5 s left")
    assert second.endswith("  2 MiB/s from disk  2 s left")


def test_the_bar_moves_while_a_step_lasts() -> None:
    written, read = StringIO(), [0]
    bar = Bar(Console(file=written, force_terminal=True, width=200, highlight=False))
    bar.watch(lambda: read[0])
    bar.start(10, 0)
    for _ in range(12):
        time.sleep(0.1)
        read[0] += 10 << 20
    bar.stop()
    assert "from disk" in written.getvalue()
    assert "1 s in step" in written.getvalue()
