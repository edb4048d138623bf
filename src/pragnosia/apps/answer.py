"""How every command answers: a table for people, one JSON object for programs, one line for what went wrong.

stdout belongs to the answer. Whatever libraries print while the work is done goes to stderr, and so does progress.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Annotated, Any, ParamSpec

import typer

from pragnosia.errors import PragnosiaError

P = ParamSpec("P")

AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

INTERRUPTED = 130


@dataclass(frozen=True)
class Answer:
    """What a command found: `values` for programs, `lines` for people, `aside` for their stderr."""

    values: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    aside: str = ""
    code: int = 0
    """What the command returns, though it has an answer: part of what was asked failed."""


def answering(command: Callable[P, Answer]) -> Callable[P, None]:
    """Run a command, print its answer, turn errors into one line and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with redirect_stdout(sys.stderr):
                answer = command(*args, **kwargs)
        except BrokenPipeError:
            hush()
            return
        except KeyboardInterrupt as stopped:  # some say what is done and how to go on
            fail(f"interrupted{f'; {stopped}' if stopped.args else ''}", INTERRUPTED)
        except (PragnosiaError, OSError, ValueError, RuntimeError, MemoryError, ImportError) as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            fail(one_line(error), getattr(error, "exit_code", 2 if isinstance(error, OSError) else 1))
        print_answer(answer, as_json=bool(kwargs.get("as_json")))
        if answer.code:
            raise typer.Exit(answer.code)

    return run


@contextmanager
def told_at_ctrl_c(message: str) -> Iterator[None]:
    """Whoever interrupts this reads what is done by then, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(message) from None


def print_answer(answer: Answer, *, as_json: bool) -> None:
    """To stdout; a reader that went away is no error."""
    lines = (
        [json.dumps(answer.values, ensure_ascii=False, default=str)]
        if as_json
        else [line.rstrip() for line in answer.lines]
    )
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        hush()
    if answer.aside and not as_json:
        print(answer.aside, file=sys.stderr)


def hush() -> None:
    """Let stdout go nowhere: its reader went away, which is no error, but is told again as the interpreter leaves."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def fail(message: str, code: int) -> None:
    """One line on stderr, and out."""
    print(f"pragnosia: {message}", file=sys.stderr)
    raise typer.Exit(code)


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def aligned(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Two columns, the first as wide as it needs to be."""
    pairs = list(rows)
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{name:<{width}}  {value}" for name, value in pairs]
