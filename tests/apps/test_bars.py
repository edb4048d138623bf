"""Bars, as somebody at a terminal sees them: they move, say what is done, and leave nothing behind."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pragnosia import kernels

pytestmark = pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
ESCAPE = re.compile(r"\x1b\[\??(\d*)([A-Za-z])")


def screen(written: str) -> list[str]:
    """The lines that a terminal shows in the end: text, returns, cursor up, erased lines."""
    lines, row, column, at = [""], 0, 0, 0
    while at < len(written):
        found = ESCAPE.match(written, at)
        if found:
            count, verb = int(found[1] or 1), found[2]
            row = max(0, row - count) if verb == "A" else row
            if verb == "K":
                lines[row] = ""
            at = found.end()
            continue
        letter = written[at]
        at += 1
        if letter == "\r":
            column = 0
        elif letter == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + letter + lines[row][column + 1 :]
            column += 1
    return lines


def at_a_terminal(*arguments: object, stdin: str = "") -> tuple[str, str]:
    """A command whose stderr is a terminal: its stdout, and all that was written to the terminal."""
    ours, theirs = pty.openpty()
    written: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(ours, 1 << 16):
                written.append(chunk)
        except OSError:  # the other end is closed
            pass

    reading = threading.Thread(target=read)
    reading.start()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-m", "pragnosia", *map(str, arguments)],
        input=stdin.encode(), stdout=subprocess.PIPE, stderr=theirs, env=environment, check=False, timeout=120,
    )  # fmt: skip
    os.close(theirs)
    reading.join(10)
    os.close(ours)
    text = b"".join(written).decode()
    assert done.returncode == 0, text
    return done.stdout.decode(), text


@pytest.mark.parametrize("memory", [["--memory", "2GiB"], pytest.param([], marks=pytest.mark.slow)])
def test_loading_and_reading_show_bars_that_go(model: Path, memory: list[str]) -> None:
    if memory and kernels.native_library() is None:
        pytest.skip("no compiled kernels here")
    said, written = at_a_terminal("generate", model, "once upon a time " * 5, "--max-new-tokens", "3", *memory)
    assert "reading" in written
    assert ("loading" in written) == bool(memory)
    left = "\n".join(screen(written))
    assert "reading" not in left
    assert "loading" not in left
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") > 0  # the cursor is back
    assert said


@pytest.mark.slow
def test_every_turn_of_a_talk_shows_what_it_reads(model: Path) -> None:
    _, written = at_a_terminal(
        "chat", model, "--max-new-tokens", "2", stdin="what does a brain do\nand what does a small one do\n"
    )
    assert written.count("\x1b[?25l") == 2
    assert "reading" not in "\n".join(screen(written))


@pytest.mark.slow
def test_programs_see_no_bar(model: Path) -> None:
    _, written = at_a_terminal("generate", model, "once upon a time " * 5, "--max-new-tokens", "3", "--json")
    assert "\x1b" not in written


def test_the_screen_of_this_test_reads_as_a_terminal_does() -> None:
    assert screen("ab\r\ncd\r\x1b[2K\x1b[1A\x1b[2Kef") == ["ef", ""]
    assert screen("a long one\rshort") == ["shortg one"]


@pytest.mark.slow
def test_who_streams_does_not_wait_for_the_tracer(model: Path) -> None:
    if kernels.native_library() is None:
        pytest.skip("no compiled kernels here")
    script = (
        "import sys; from pragnosia.apps.cli import main; code = main(sys.argv[1:]); slow = "
        "{'torch._dynamo', 'sympy', 'transformers.modeling_utils', 'matplotlib', 'pandas', 'datasets'} "
        "& set(sys.modules); sys.exit(f'loaded {slow}' if slow else code)"
    )
    for words in (["generate", model, "once upon a time", "--max-new-tokens", "3"], ["plan", model]):
        command = [sys.executable, "-c", script, *map(str, words), "--memory", "2GiB"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
