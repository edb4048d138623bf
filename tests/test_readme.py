"""Every command the README and the docs show exists, with the options they show."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from pragnosia.apps.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
SHOWN = sorted(
    {
        command.strip()
        for page in PAGES
        for block in re.findall(r"```(?:console|bash)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
        for line in block.splitlines()
        for command in re.findall(r"pragnosia [a-z].*", line.split(" #")[0].removeprefix("$ "))
        for command in command.split("&&")
        if command.strip().startswith("pragnosia") and line.startswith(("$", "pragnosia"))
    }
)


@pytest.mark.parametrize("command", SHOWN)
def test_shown_commands_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)[1:]
    verb = words[:2] if words[0] in ("tokenizer", "memory") else words[:1]
    assert main([*verb, "--help"]) == 0
    told = re.sub(r"\s+", " ", capsys.readouterr().out)
    for option in (word for word in words if word.startswith("--")):
        assert option in told, f"{' '.join(verb)} has no {option}"


def test_something_is_shown() -> None:
    assert len(SHOWN) >= 8


@pytest.mark.parametrize("name", ["_tables.py", "_peer_tables.py"])
def test_tables_are_those_of_the_json_beside_the_benchmarks(name: str) -> None:
    script = ROOT / "benchmarks" / "budget" / name
    tables = runpy.run_path(str(script))
    page = tables["PAGE"].read_text("utf-8")
    assert tables["written"](page) == page, f"run python {script.relative_to(ROOT)}"
    for table in tables["TABLES"]:
        assert page.count(f"<!-- {table} -->\n| ") == 1, table
