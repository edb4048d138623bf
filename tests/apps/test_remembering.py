"""`teach`, `recall`, `forget`, `memory`, and what the other commands make of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from pragnosia.apps.cli import main

Run = Callable[..., Any]
LESSON = "The capital of Zorvia is Plem."
EXACT = "The capital of Zorvia is"


@pytest.fixture
def own(model: Path, tmp_path: Path) -> Path:
    """A model of its own, for a store beside it."""
    return Path(shutil.copytree(model, tmp_path / "own"))


@pytest.fixture
def taught(own: Path) -> Path:
    assert main(["teach", str(own), LESSON, "--json"]) == 0
    return own


def test_taught_recalled_said_forgotten(run: Run, own: Path) -> None:
    values = run("teach", own, LESSON, "--json").values
    assert values["store"] == str(own / "episodes")
    assert (values["lessons"], values["repeated"], values["cut"], values["evicted"]) == (1, 0, 0, [])
    assert "known before" in run("teach", own, LESSON).out
    (found,) = run("recall", own, EXACT, "--json").values["recalled"]
    assert (found["text"], found["brings"]) == (LESSON, "Plem.")
    assert "shares the, capital, of, zorvia, is" in run("recall", own, EXACT).out
    assert run("recall", own, "xyz").out == "nothing comes to mind\n"
    say = ("generate", own, EXACT, "--max-new-tokens", 5, "--json")
    assert run(*say).values["text"].startswith(" Plem.")
    assert not run(*say, "--no-memory").values["text"].startswith(" Plem.")
    assert not run(*say, "--store", own / "empty").values["text"].startswith(" Plem.")
    assert run("forget", own, "--id", found["id"], "--json").values["forgotten"] == [found["id"]]
    run("forget", own, LESSON).refused("holds no lesson that says")


def test_a_file_is_several_lessons(run: Run, own: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text(f"{LESSON}\nBrun's mayor is Tal.\n\nThe river of Quillon\nis the Ola.\n", "utf-8")
    values = run("teach", own, "--file", notes, "--store", tmp_path / "shared", "--json").values
    assert values["lessons"] == 3
    stats = run("memory", "stats", own, "--store", tmp_path / "shared", "--json").values
    assert (stats["episodes"], stats["sources"]) == (3, 1)
    assert "3, taught 3 time(s)" in run("memory", "stats", own, "--store", tmp_path / "shared").out
    assert not (own / "episodes").exists()


def test_a_long_lesson_is_forgotten_as_it_was_taught(run: Run, own: Path) -> None:
    """It became several lessons, whose texts the user never saw."""
    long = " ".join(f"The number of house {n} is {n * n}." for n in range(40))
    values = run("teach", own, long, "--json").values
    assert values["cut"] == 1
    assert values["lessons"] > 1
    run("teach", own, LESSON)
    run("forget", own, long + " And so on.").refused("holds no lesson that says")
    assert run("forget", own, f"{long}\n", "--json").values["forgotten"] == values["ids"]
    assert run("memory", "stats", own, "--json").values["episodes"] == 1


def test_a_file_with_rules_and_bullets(run: Run, own: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text(f"*\n\n{LESSON}\n\n*\n", "utf-8")
    done = run("teach", own, "--file", notes, "--json").values
    assert (done["lessons"], done["passed_over"]) == (1, 2)
    assert "2 of a single token passed over" in run("teach", own, "--file", notes).out
    notes.write_text("*\n\n*\n", "utf-8")
    run("teach", own, "--file", notes).refused("there is no lesson in it")
    run("teach", own, "*").refused("is one token")


def test_travel(run: Run, taught: Path, tmp_path: Path) -> None:
    assert run("memory", "export", taught, tmp_path / "out", "--json").values["lessons"] == 1
    line = json.loads((tmp_path / "out" / "episodes.jsonl").read_text("utf-8"))
    assert line["text"] == LESSON
    done = run("memory", "import", taught, tmp_path / "out", "--store", tmp_path / "new", "--json").values
    assert (done["lessons"], done["repeated"]) == (1, 0)
    anew = ("memory", "import", taught, tmp_path / "out", "--anew", "--store", tmp_path / "newer", "--json")
    assert run(*anew).values["lessons"] == 1
    values = run("memory", "compact", taught, "--json").values
    assert values["bytes"] <= values["bytes_before"]


def test_eval_and_chat_use_it(run: Run, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text(LESSON, "utf-8")
    bits = [
        run("eval", taught, "--data", text, "--json", *more).values["bits_per_byte"]
        for more in ((), ("--no-memory",), ("--no-memory", "--cache"))
    ]
    assert bits[0] < 0.7 * bits[1]
    assert bits[2] != bits[1]
    monkeypatch.setattr("sys.stdin", StringIO(f"/teach Brun's mayor is Tal.\n/teach\n{EXACT}\n"))
    done = run("chat", taught, "--max-new-tokens", 4, "--temperature", 0, "--json")
    assert "kept 1 lesson" in done.err
    assert "the lesson is empty" in done.err
    assert "Plem" in done.values["messages"][-1]["content"]
    assert run("memory", "stats", taught, "--json").values["episodes"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("teach", "{model}", ""), ("the lesson is empty",)),
        (("teach", "{model}"), ("a text or --file",)),
        (("teach", "{model}", "a b", "--limit", "much"), ("--limit",)),
        (("teach", "{model}", "--file", "{model}/none.txt"), ("no such file",)),
        (("forget", "{model}"), ("--id N",)),
        (("memory", "stats", "{model}"), ("there is no store", "pragnosia teach")),
        (("memory", "export", "{model}", "out"), ("there is no store",)),
        (("generate", "{model}", "x", "--store", "a", "--no-memory"), ("exclude each other",)),
    ],
)
def test_bad_input_is_one_line(run: Run, model: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    run(*(argument.format(model=model) for argument in arguments)).refused(*words)


def test_what_needs_no_model_loads_none(at_once: Run, taught: Path) -> None:
    assert at_once("memory", "stats", taught, "--json").values["episodes"] == 1
    assert at_once("forget", taught, "--id", 1).code == 0
    at_once("teach", taught, " ").refused("the lesson is empty")
    at_once("forget", taught, "--id", 1).refused("holds no lesson 1")
