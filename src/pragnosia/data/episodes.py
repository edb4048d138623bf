"""Episodes: several examples of one task as one document, so that a model learns to learn a task from what it reads.

    row  {"task": "plural", "text": "cat -> cats"}        a table of examples, each with the name of its task
    document                                              SHOTS of them, of one task, a line each

The examples of a task are shuffled and dealt out to episodes of equal length, the last of a task may have fewer; the
episodes of all tasks are shuffled, too. Every example stands in one episode, so an epoch reads the text of all rows, in
another order. The order depends on the names of the tasks and the seed alone.

Learning to learn from examples in the context: Min et al. 2022 (MetaICL), arXiv 2110.15943.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from pragnosia.data.files import Files
from pragnosia.errors import DataError, unknown_name

SHOTS = 8
"""Examples of an episode, unless said otherwise."""
TASK, EXAMPLE = "task", "text"


@dataclass(frozen=True)
class Episodes:
    """A table of examples, read task by task."""

    files: Files
    shots: int = SHOTS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shots < 2:
            raise DataError(f"an episode of {self.shots} examples shows nothing to go by; give 2 or more")

    @property
    def name(self) -> str:
        return f"episodes of {self.files.name}"

    def documents(self) -> Iterator[str]:
        """An episode each. Raises DataError for rows without a task, or none at all."""
        found: list[str] = []
        for task, examples in sorted(self._tasks().items()):
            random.Random(f"{self.seed} {task}").shuffle(examples)
            dealt = (examples[first : first + self.shots] for first in range(0, len(examples), self.shots))
            found += ["\n".join(some) + "\n" for some in dealt]
        random.Random(self.seed).shuffle(found)
        return iter(found)

    def identity(self) -> dict[str, object]:
        return {"episodes": self.files.identity(), "shots": self.shots, "seed": self.seed}

    def _tasks(self) -> dict[str, list[str]]:
        """Examples by task, white space at their ends left out."""
        tasks: dict[str, list[str]] = {}
        for where, row in self.files.records():
            if isinstance(row, str):
                raise DataError(f"{where} is text; episodes are made of a table, .jsonl or .parquet, with a task a row")
            for column in (TASK, EXAMPLE):
                if column not in row:
                    raise DataError(f"{where}: {unknown_name('column', column, list(row))}")
                if not isinstance(row[column], str):
                    raise DataError(f"{where}: column {column!r} holds {type(row[column]).__name__}, expected a text")
            if example := str(row[EXAMPLE]).strip():
                tasks.setdefault(str(row[TASK]), []).append(example)
        if not tasks:
            raise DataError(f"{self.files.root} is empty: it holds no example")
        return tasks
