from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
import yaml

from pragnosia.errors import DataError
from pragnosia.measure.harness_tasks import Question, multiple_choice, sentence_pairs, write_task

PAIR = Question(("Cats sleep.", "Cats sleeps."), right=0, group="agreement")


def test_the_right_choice_stands_last(tmp_path: Path) -> None:
    path = write_task(tmp_path, "pairs", [PAIR, Question(("a", "b", "c"), right=1)])
    task = yaml.safe_load(path.read_text("utf-8"))
    written = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text("utf-8")
    rows = [json.loads(line) for line in written.splitlines()]
    assert [row["choices"][row["right"]] for row in rows] == ["Cats sleep.", "b"]
    assert [row["choices"] for row in rows] == [["Cats sleeps.", "Cats sleep."], ["a", "c", "b"]]
    assert (task["task"], task["target_delimiter"]) == ("pairs", "")


def test_behind_a_context_comes_a_space(tmp_path: Path) -> None:
    path = write_task(tmp_path, "asked", [Question(("yes", "no"), right=1, context="Is it?")])
    assert yaml.safe_load(path.read_text("utf-8"))["target_delimiter"] == " "


def test_paradigms_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.xz"
    with lzma.open(path, "wt", encoding="utf-8") as file:
        for number, paradigm in enumerate("aaabbc"):
            file.write(json.dumps({"good": f"g{number}", "bad": "\u2028", "UID": paradigm}) + "\n")
    found = sentence_pairs(path)
    assert "".join(question.group for question in found) == "abcaba"
    assert [question.choices[question.right] for question in found] == ["g0", "g3", "g5", "g1", "g4", "g2"]


def test_multiple_choice_is_read(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"query": "Is it?", "choices": ["yes", "no"], "gold": 1}\n', "utf-8")
    assert multiple_choice(path) == [Question(("yes", "no"), 1, "Is it?")]


def test_tasks_share_a_folder_and_are_replaced(tmp_path: Path) -> None:
    write_task(tmp_path, "one", [PAIR])
    write_task(tmp_path, "two", [PAIR])
    write_task(tmp_path, "one", [PAIR, PAIR])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "one.yaml", "two.jsonl", "two.yaml"]
    assert len((tmp_path / "one.jsonl").read_text("utf-8").splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "questions", "message"),
    [
        ("empty", [], "has no questions"),
        ("mixed", [PAIR, Question(("a", "b"), 0, "c")], "1 of 2 questions of mixed have a context"),
        ("a/b", [PAIR], "cannot name a task"),
    ],
)
def test_impossible_tasks_are_refused(tmp_path: Path, name: str, questions: list[Question], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_task(tmp_path, name, questions)
    assert not list(tmp_path.iterdir())


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(DataError, match="two or more, none empty"):
        Question(("only",), 0)
    with pytest.raises(DataError, match="two or more, none empty"):
        Question(("a", ""), 0)
    with pytest.raises(DataError, match="right choice is 2"):
        Question(("a", "b"), 2)


def test_files_of_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    for text, message in (
        ('{"good": "a", "UID": "x"}\n', "line 1 has no 'bad'"),
        ("not JSON\n", "one JSON object a line"),
        ("7\n", "one JSON object a line"),
        ("\udcff", "one JSON object a line"),
    ):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(DataError, match=message):
            sentence_pairs(path)
    with pytest.raises(DataError, match="No such file"):
        sentence_pairs(tmp_path / "none.jsonl")
    cut = tmp_path / "cut.jsonl.xz"
    cut.write_bytes(lzma.compress(b'{"good": "a", "bad": "b", "UID": "x"}\n')[:-20])
    with pytest.raises(DataError, match=r"cut\.jsonl\.xz"):
        sentence_pairs(cut)
