"""Examples come task by task, each once, and in an order that is the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pragnosia.data import resolve
from pragnosia.data.episodes import Episodes
from pragnosia.data.files import Files
from pragnosia.errors import DataError

ROWS = [{"task": f"t{n % 3}", "text": f"t{n % 3} example {n}\n"} for n in range(20)]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


def test_an_episode_is_of_one_task(table: Path) -> None:
    documents = list(resolve(f"episodes:{table}:4").documents())
    lines = [document.splitlines() for document in documents]
    assert sorted(len(some) for some in lines) == [2, 3, 3, 4, 4, 4]
    assert all(len({line.split()[0] for line in some}) == 1 for some in lines)
    assert sorted(line for some in lines for line in some) == sorted(row["text"].strip() for row in ROWS)
    tasks = [some[0].split()[0] for some in lines]
    assert tasks != sorted(tasks), "tasks are mixed"
    assert lines[0] != sorted(lines[0]), "and so are examples"


def test_the_order_is_the_same_every_time(table: Path) -> None:
    source = Episodes(Files(table), 4)
    assert list(source.documents()) == list(source.documents())
    other = Episodes(Files(table), 4, seed=1)
    assert list(other.documents()) != list(source.documents())
    assert other.identity() != source.identity() != Episodes(Files(table), 5).identity()
    assert len(list(resolve(f"episodes:{table}").documents())) == 3, "eight examples unless said otherwise"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "line 1: unknown column 'task'"),
        ({"task": "a", "txt": "b"}, "Did you mean 'txt'"),
        ({"task": 3, "text": "b"}, "column 'task' holds int, expected a text"),
        ({"task": "a", "text": " "}, "it holds no example"),
    ],
)
def test_rows_that_are_no_examples(row: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(row) + "\n", "utf-8")
    with pytest.raises(DataError) as refused:
        list(resolve(f"episodes:{path}").documents())
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_names_that_mean_nothing(table: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected episodes:PATH"):
        resolve(f"episodes:{table}:many")
    with pytest.raises(DataError, match="2 or more"):
        resolve(f"episodes:{table}:1")
    with pytest.raises(DataError, match="no such file"):
        resolve(f"episodes:{tmp_path / 'none.jsonl'}:4")
    (tmp_path / "prose.txt").write_text("words", "utf-8")
    with pytest.raises(DataError, match="is text; episodes are made of a table"):
        list(resolve(f"episodes:{tmp_path / 'prose.txt'}").documents())
