"""Progress: what a person sees of a run, on stderr, so that stdout stays free for results."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Protocol, final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from pragnosia.training.events import events_of
from pragnosia.training.log import Record
from pragnosia.units import format_bytes, format_count, format_duration


class Reporter(Protocol):
    """Whoever wants to know how a run goes."""

    def note(self, line: str) -> None:
        """Say one line."""

    def watch(self, bytes_read: Callable[[], int]) -> None:
        """Weights come from disk: how many bytes so far can be asked at any time."""

    def loading(self, done: int, total: int) -> None:
        """Weights come, before the loop: bytes so far, and of how many."""

    def start(self, steps: int, done: int) -> None:
        """The loop begins, `done` of `steps` steps behind it."""

    def advance(self, step: int, record: Record | None) -> None:
        """A step is done; the record if one was written."""

    def stop(self) -> None:
        """The loop, or loading, has ended, one way or the other."""


@final
class Silent:
    """Says nothing."""

    def note(self, line: str) -> None: ...
    def watch(self, bytes_read: Callable[[], int]) -> None: ...
    def loading(self, done: int, total: int) -> None: ...
    def start(self, steps: int, done: int) -> None: ...
    def advance(self, step: int, record: Record | None) -> None: ...
    def stop(self) -> None: ...


_WINDOW_S = 5.0


@final
class FromDisk(ProgressColumn):
    """The bytes per second that come from disk, of late."""

    def __init__(self, bytes_read: Callable[[], int], clock: Callable[[], float] = monotonic) -> None:
        super().__init__(Column(no_wrap=True))
        self.bytes_read, self.clock = bytes_read, clock
        self.seen: deque[tuple[float, int]] = deque()
        self.asked = clock(), bytes_read()

    def since(self) -> str:
        """The same as a mean since it was last asked here, for a line of a log; empty where no time has passed."""
        (then, before), now = self.asked, (self.clock(), self.bytes_read())
        self.asked = now
        return f"{format_bytes(max(0, now[1] - before) / (now[0] - then))}/s from disk" if now[0] > then else ""

    def render(self, task: Task) -> Text:
        """Asked by the bar, several times a second."""
        now = self.clock()
        self.seen.append((now, self.bytes_read()))
        while len(self.seen) > 2 and now - self.seen[1][0] >= _WINDOW_S:
            self.seen.popleft()
        (then, before), (_, after) = self.seen[0], self.seen[-1]
        rate = f"{format_bytes(max(0, after - before) / (now - then))}/s from disk" if now > then else ""
        return Text(rate, style="progress.data.speed")


@final
class Within(ProgressColumn):
    """What moves while a step lasts: its seconds, and what comes from disk."""

    def __init__(self, bytes_read: Callable[[], int] | None = None, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(Column(no_wrap=True))
        self.disk = None if bytes_read is None else FromDisk(bytes_read, clock)
        self.clock, self.began = clock, clock()

    def begin(self) -> None:
        """Another step begins."""
        self.began = self.clock()

    def render(self, task: Task) -> Text:
        """Asked by the bar, several times a second."""
        text = Text(f"{self.clock() - self.began:.0f} s in step", style="progress.elapsed")
        rate = Text() if self.disk is None else self.disk.render(task)
        return text + Text("  ") + rate if rate else text


@final
class Bar:
    """A live bar in a terminal; plain lines, now and then, anywhere else."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr, highlight=False)
        self.progress: Progress | None = None
        self.steps = 0
        self.within = Within()

    def note(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def watch(self, bytes_read: Callable[[], int]) -> None:
        self.within = Within(bytes_read)

    def loading(self, done: int, total: int) -> None:
        if self.progress is None and self.console.is_terminal and done < total:
            columns = TextColumn("loading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
            self.progress = Progress(*columns, console=self.console, transient=True)
            self.progress.start()
            self.progress.add_task("", total=total)
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=done, total=total)
        if done >= total:
            self.stop()

    def start(self, steps: int, done: int) -> None:
        self.stop()
        self.steps = steps
        self.within.begin()
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("[bold]step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[numbers]}"),
                self.within,
                TimeRemainingColumn(),
                console=self.console,
                expand=True,
                transient=True,
            )
            self.progress.start()
            self.progress.add_task("", total=steps, completed=done, numbers="")

    def advance(self, step: int, record: Record | None) -> None:
        for event in events_of([record] if record is not None else []):
            self.note(f"step {event.step}: {event.told}")
        if self.progress is None:
            if record is not None:
                left = (self.steps - step) * record["seconds_per_step"]
                rate = "" if self.within.disk is None else self.within.disk.since()
                told = [f"step {step}/{self.steps}", numbers(record), *([rate] if rate else [])]
                self.note("  ".join([*told, f"{format_duration(left)} left"]))
            return
        task = self.progress.task_ids[0]
        if record is not None:
            self.progress.update(task, numbers=numbers(record))
        self.progress.update(task, completed=step)
        self.within.begin()

    def stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def numbers(record: Record) -> str:
    """The figures of a record that fit on a line."""
    parts = [f"loss {record['loss']:.3f}"]
    if "bits_per_byte" in record:
        parts.append(f"{record['bits_per_byte']:.3f} bits/byte")
    if "validation_bits_per_byte" in record:
        parts.append(f"held out {record['validation_bits_per_byte']:.3f}")
    parts.append(f"{format_count(record['tokens_per_second'])} tok/s")
    if "units_awake" in record:
        parts.append(f"{record['units_awake']:.3g} of {record['units']} awake")
        if record["dead_units"]:
            parts.append(f"{record['dead_units']} dead")
    return "  ".join(parts)
