"""Watch: a run in a terminal while it goes: loss, utilisation of units layer by layer, births and deaths.

What is drawn is what the log says; a run that is resumed begins with the picture of what was before. Where the output
is no terminal, or one that knows only ASCII, there are plain lines instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import final

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pragnosia.training.braille import bars, curve, place
from pragnosia.training.events import balance, events_of
from pragnosia.training.log import Record, read_log
from pragnosia.training.progress import Bar, numbers
from pragnosia.units import format_count, format_duration, plural

_CURVE_LINES, _EVENT_LINES, _MARGIN = 7, 4, 9
_OTHER_LINES = 7  # head, bar, axis, titles and blank lines
_PER_SECOND = 2
_WIDE = 80
_COOL, _WARM, _SOFT = "cyan", "red", "bright_black"


@final
class Watch:
    """A live picture in a terminal; plain lines anywhere else."""

    def __init__(self, log: Path, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr, highlight=False)
        self.lines = Bar(self.console)
        self.log, self.records = log, list[Record]()
        self.steps, self.done, self.began = 0, 0, monotonic()
        self.live: Live | None = None

    @property
    def draws(self) -> bool:
        """Whether there is a terminal that can show the picture."""
        return self.console.is_terminal and not self.console.options.ascii_only

    def note(self, line: str) -> None:
        self.lines.note(line)

    def watch(self, bytes_read: Callable[[], int]) -> None:
        self.lines.watch(bytes_read)

    def loading(self, done: int, total: int) -> None:
        self.lines.loading(done, total)

    def start(self, steps: int, done: int) -> None:
        if not self.draws:
            self.lines.start(steps, done)
            return
        self.lines.stop()
        self.records = [record for record in read_log(self.log) if record["step"] <= done]
        self.steps, self.done, self.began = steps, done, monotonic()
        self.live = Live(
            console=self.console, get_renderable=self.picture, refresh_per_second=_PER_SECOND, vertical_overflow="crop"
        )
        self.live.start()

    def advance(self, step: int, record: Record | None) -> None:
        if self.live is None:
            self.lines.advance(step, record)
            return
        if record is not None:
            self.records = [*self.records, record]  # the thread that draws sees the old or the new
        self.done, self.began = step, monotonic()

    def stop(self) -> None:
        self.lines.stop()
        if self.live is not None:
            self.live.refresh()
            self.live.stop()
            self.live = None

    def picture(self) -> RenderableType:
        """As of now, no higher than the terminal."""
        records, width = self.records, self.console.width
        # padded, so that the line ends even where no colour tells what is left from what is done
        bar = Padding(ProgressBar(total=max(1, self.steps), completed=self.done, width=width), 0)
        if not records:
            return Group(self._head(None), bar)
        room = self.console.height - _CURVE_LINES - _EVENT_LINES - _OTHER_LINES
        parts: list[RenderableType] = [self._head(records[-1]), bar, self._loss(width), Text()]
        layers = records[-1].get("utilisation", ())
        if layers:
            parts += [_utilisation(records[-1], width, max(1, room)), Text()]
        return Group(*parts, _happened(records, width))

    def _head(self, record: Record | None) -> Text:
        text = Text(f"step {self.done}/{self.steps}", style="bold", no_wrap=True, overflow="ellipsis")
        if record is not None:
            left = (self.steps - self.done) * record["seconds_per_step"]
            stage = f"  stage {record['stage']}" if "stage" in record else ""
            size = f"  {format_count(record['parameters'])} parameters" if "parameters" in record else ""
            text.append(f"{stage}{size}  {numbers(record)}  {format_duration(left)} left", style="not bold")
        text.append(f"  {monotonic() - self.began:.0f} s in step", style=_SOFT)
        return text

    def _loss(self, width: int) -> Table:
        """The curve of the loss, its scale at the left, a mark below it where something happened."""
        losses = [float(record["loss"]) for record in self.records]
        room = max(10, width - _MARGIN - 1)
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=_MARGIN - 1, justify="right", style=_SOFT)
        grid.add_column(no_wrap=True)
        steps = max(1, self.steps)
        points = [(record["step"] / steps, float(record["loss"])) for record in self.records]
        ends = {0: f"{max(losses):.3f}", 1: "loss", _CURVE_LINES - 1: f"{min(losses):.3f}"}
        for number, line in enumerate(curve(points, room, _CURVE_LINES)):
            grid.add_row(ends.get(number, ""), Text(line, style=_COOL))
        marks = [" "] * room
        for event in events_of(self.records):
            marks[place(event.step / steps, room)] = "▲"
        grid.add_row("", Text("".join(marks), style=_WARM))
        return grid


def _utilisation(record: Record, width: int, room: int) -> Table:
    """A line per layer: each unit's work against an even share, and who slept."""
    layers = record["utilisation"]
    shown = layers if len(layers) <= room else layers[: max(1, room - 1)]
    facts = [f"{part['units']} units, {part['asleep']} asleep" for part in shown]
    if width >= _WIDE:
        facts = [
            f"{fact}, busiest {part['busiest']:.2g} of an even share" for fact, part in zip(facts, shown, strict=True)
        ]
    space = max(4, width - _MARGIN - 2 - max(map(cell_len, facts)))
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=_MARGIN - 1, justify="right", style=_SOFT, no_wrap=True)
    grid.add_column(width=space, no_wrap=True)
    grid.add_column(no_wrap=True, style=_SOFT)
    for part, fact in zip(shown, facts, strict=True):
        grid.add_row(part["name"], Text(bars(part["load"], space), style=_COOL), fact)
    if len(shown) < len(layers):
        grid.add_row("", f"{plural(len(layers) - len(shown), 'layer')} more", "")
    return grid


def _happened(records: list[Record], width: int) -> Text:
    """Births and deaths, and the last events with their reasons."""
    events = events_of(records)
    births, deaths = balance(events)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{plural(births, 'birth')}, {plural(deaths, 'death')}", style="bold")
    for event in events[-_EVENT_LINES:]:
        text.append(f"\n▲ step {event.step}  ", style=_WARM)
        text.append(event.told)
    return text
