"""The picture of a run: in a terminal while it goes, as a page afterwards, from one and the same log."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
from rich.console import Console

from pragnosia.learning import Lesson
from pragnosia.model.thalamus import Routing
from pragnosia.training.braille import bars, curve, place
from pragnosia.training.events import Event, balance, events_of
from pragnosia.training.log import read_log
from pragnosia.training.page import page
from pragnosia.training.progress import Bar, Reporter, Silent
from pragnosia.training.trainer import train
from pragnosia.training.utilisation import CELLS, told, utilisation
from pragnosia.training.watching import Watch

Configure = Callable[..., dict[str, Any]]
EVENT = Event(
    step=4,
    what="deepen",
    reason="plateau <1 %",
    detail="2 -> 3 layers",
    births=5,
    deaths=1,
    parameters=(1000, 2000),
)


def record(step: int, **more: Any) -> dict[str, Any]:
    layer = {"name": "layer 0", "units": 4, "asleep": 1, "busiest": 2.5, "load": [0.0, 0.5, 1.0, 2.5]}
    values = {"step": step, "tokens": 64 * step, "loss": 4 - step / 10, "bits_per_byte": 2 - step / 20}
    speed = {"learning_rate": 0.01, "gradient_norm": 1.0, "tokens_per_second": 4321.0, "seconds_per_step": 0.5}
    units = {"units": 4, "units_awake": 2.0, "dead_units": 1, "utilisation": [layer], "parameters": 1000}
    return values | speed | units | more


def drawn(watch: Watch, records: list[dict[str, Any]], steps: int = 10) -> str:
    watch.start(steps, 0)
    for each in records:
        watch.advance(each["step"], each)
    picture = watch.picture()
    watch.stop()
    out = StringIO()
    Console(file=out, width=100, height=40, force_terminal=False).print(picture)
    return out.getvalue()


def terminal(width: int = 100, height: int = 40) -> Console:
    return Console(
        file=StringIO(), force_terminal=True, width=width, height=height, highlight=False, legacy_windows=False
    )


def test_the_picture_shows_loss_use_births_deaths_and_reasons(tmp_path: Path) -> None:
    records = [record(2), record(4, events=[EVENT.write()]), record(6)]
    text = drawn(Watch(tmp_path / "log.jsonl", terminal()), records)
    for part in ("step 6/10", "3.800", "3.400", "layer 0", "4 units, 1 asleep, busiest 2.5", "5 births, 1 death",
                 "▲ step 4", "2 -> 3 layers (plateau <1 %); 1 k -> 2 k parameters"):  # fmt: skip
        assert part in text, part
    mark = next(line for line in text.splitlines() if line.strip() == "▲")
    assert mark.index("▲") == 9 + place(0.4, 90)


def test_a_resumed_run_begins_with_the_picture_of_what_was(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(record(step)) + "\n" for step in (2, 4, 6)))
    watch = Watch(log, terminal())
    watch.start(10, 4)
    watch.stop()
    assert [each["step"] for each in watch.records] == [2, 4]


def test_many_layers_stay_within_the_terminal(tmp_path: Path) -> None:
    layer = record(1)["utilisation"][0]
    many = record(2, utilisation=[layer | {"name": f"layer {number}"} for number in range(60)])
    watch = Watch(tmp_path / "log.jsonl", terminal(height=30))
    text = drawn(watch, [many])
    assert "layers more" in text
    assert len(text.rstrip().splitlines()) <= 30


@pytest.mark.parametrize("width", [30, 60])
def test_a_narrow_terminal_shows_the_same_shorter(tmp_path: Path, width: int) -> None:
    watch = Watch(tmp_path / "log.jsonl", terminal(width, 30))
    watch.start(10, 0)
    watch.advance(2, record(2))
    picture = watch.picture()
    watch.stop()
    out = StringIO()
    Console(file=out, width=width, no_color=True).print(picture)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert all(len(line) <= width for line in lines)
    assert set(lines[1]) == {"━"}, "the bar has a line of its own"
    assert any(line.strip().startswith("layer 0") and "4 uni" in line for line in lines)


def test_a_dense_model_has_a_picture_too(tmp_path: Path) -> None:
    dense = {key: value for key, value in record(2).items() if "unit" not in key and key != "utilisation"}
    text = drawn(Watch(tmp_path / "log.jsonl", terminal()), [dense])
    assert "loss" in text
    assert "asleep" not in text


@pytest.mark.parametrize(("is_terminal", "encoding"), [(False, "utf-8"), (True, "ascii")])
def test_where_nothing_can_be_drawn_there_are_lines(tmp_path: Path, is_terminal: bool, encoding: str) -> None:
    class Output(StringIO):
        pass

    Output.encoding = encoding  # type: ignore[misc, assignment]
    written = Output()
    console = Console(file=written, force_terminal=is_terminal, width=200, highlight=False)
    watch = Watch(tmp_path / "log.jsonl", console)
    assert not watch.draws
    watch.start(10, 0)
    watch.advance(4, record(4, events=[EVENT.write()]))
    watch.stop()
    assert "step 4: deepen: 2 -> 3 layers (plateau <1 %)" in written.getvalue()
    assert "loss 3.600" in written.getvalue()


def test_watch_is_a_reporter(tmp_path: Path) -> None:
    reporters: list[Reporter] = [Watch(tmp_path / "log.jsonl", Console(file=StringIO()))]
    for reporter in reporters:
        reporter.note("hello")
        reporter.loading(1, 1)
        reporter.watch(lambda: 0)
        reporter.stop()


def test_events_survive_the_log() -> None:
    records = [json.loads(json.dumps(record(4, events=[EVENT.write()]))), record(6)]
    assert events_of(records) == [EVENT]
    assert balance([EVENT, EVENT]) == (10, 2)


def test_a_line_is_drawn_where_its_points_are() -> None:
    rows = curve([(0.0, 0.0), (0.5, 0.5), (0.999, 1.0)], 10, 5)
    assert [len(row) for row in rows] == [10] * 5
    lit = [(x, y) for y, row in enumerate(rows) for x, cell in enumerate(row) if cell != chr(0x2800)]
    assert (0, 4) in lit
    assert (9, 0) in lit
    assert all(abs(x / 9 + y / 4 - 1) < 0.35 for x, y in lit), "nothing but the diagonal"
    assert curve([], 3, 1) == [chr(0x2800) * 3]
    assert curve([(0.0, float("nan"))], 3, 1) == [chr(0x2800) * 3]
    assert curve([(0.0, 1.0), (0.99, 1.0)], 3, 1) == [chr(0x2809) * 3], "a level line"


def test_bars_fill_their_room_and_never_more() -> None:
    assert bars([0.0, 0.01, 1.0, 9.0], 4) == " ▁▄█"
    assert bars([0.0, 2.0], 9) == "    ████"
    assert len(bars([1.0] * 500, 40)) == 40


def test_utilisation_counts_who_woke() -> None:
    units = torch.tensor([[0, 1], [0, 2], [0, -1]])
    routing = Routing(units, torch.ones(3, 2), torch.rand(3, 4))
    lessons = [Lesson(torch.tensor(1.0), (None, routing))] * 2
    part = utilisation(lessons, torch.nn.Linear(1, 1))
    assert part == [{"name": "layer 1", "units": 4, "asleep": 1, "busiest": 2.4, "load": [2.4, 0.8, 0.8, 0.0]}]


def test_many_units_are_told_in_groups() -> None:
    load = torch.zeros(1000)
    load[:500] = 3.0
    part = told("layer 0", load)
    assert len(part["load"]) == CELLS
    assert part["load"][0] == 2.0
    assert part["load"][-1] == 0.0
    assert part["asleep"] == 500


def test_memory_says_which_rows_were_recalled(configure: Configure, tmp_path: Path) -> None:
    memory = {"num_rows": 64, "num_heads": 2, "num_awake": 2, "key_width": 8}
    model = {"hippocampus": memory, "feed_forwards": ["experts", "memory"]}
    train(configure(steps=2, model=model), out=tmp_path / "run", reporter=Silent())
    parts = read_log(tmp_path / "run" / "log.jsonl")[-1]["utilisation"]
    assert [part["name"] for part in parts] == ["layer 0", "memory"]
    assert parts[1]["units"] == 64
    assert 0 <= parts[1]["asleep"] < 64


def test_the_page_stands_alone_and_is_of_the_log(configure: Configure, tmp_path: Path) -> None:
    out = tmp_path / "a <run> & more"
    train(configure(steps=6, logging={"curves": True}), out=out, reporter=Silent())
    text = (out / "report.html").read_text()
    assert "a &lt;run&gt; &amp; more" in text
    assert "<run>" not in text
    assert "<script" not in text
    links = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", text)
    assert all(link.startswith(("#", "data:")) for link in links), "nothing is loaded"
    drawings = [ET.fromstring(part) for part in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(drawings) == 3
    assert "layer 0" in text
    assert "kept its structure" in text
    facts = json.loads((out / "report.json").read_text())
    assert f"{facts['bits_per_byte']:.4f}" in text


def test_events_stand_on_the_curve_and_in_the_table_of_the_page() -> None:
    records = [record(2), record(4, events=[EVENT.write()]), record(6, parameters=2000, active_parameters=900)]
    facts = {"bits_per_byte": 1.0, "steps": 6, "tokens": 384, "tokens_per_second": 10.0, "seconds": 3.0}
    text = page(records, "run", facts, "steps: 6")
    assert "plateau &lt;1 %" in text
    assert "1 k → 2 k" in text
    assert "<b>5, 1</b>" in text
    assert len(re.findall(r"<svg", text)) == 4, "the size is drawn where it changed"


def test_lines_tell_of_events_too() -> None:
    written = StringIO()
    bar = Bar(Console(file=written, force_terminal=False, width=200))
    bar.start(10, 0)
    bar.advance(4, record(4, events=[EVENT.write()]))
    assert written.getvalue().startswith("step 4: deepen")
