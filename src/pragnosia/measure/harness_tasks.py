"""Task files for lm-evaluation-harness from data at hand: the questions as JSON lines, and a YAML that says how to ask.

Of equal scores lm_eval takes the first choice, so the right one stands last: a model that cannot tell is wrong.
"""

from __future__ import annotations

import json
import lzma
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import yaml

from pragnosia.data.whole import whole_folder
from pragnosia.errors import DataError


@dataclass(frozen=True)
class Question:
    """What the model must find likeliest after `context`: choices[right]."""

    choices: tuple[str, ...]
    right: int
    context: str = ""
    group: str = ""
    """Whatever accuracy should be told of, besides all."""

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or not all(self.choices):
            raise DataError(f"a question has the choices {list(self.choices)}; expected two or more, none empty")
        if not 0 <= self.right < len(self.choices):
            raise DataError(f"the right choice is {self.right}, expected 0 to {len(self.choices) - 1}")

    def row(self) -> dict[str, Any]:
        """As it is written, the right choice last."""
        others = [choice for at, choice in enumerate(self.choices) if at != self.right]
        choices = [*others, self.choices[self.right]]
        return {"context": self.context, "choices": choices, "right": len(others), "group": self.group}


def sentence_pairs(path: Path | str, *, group: str = "UID") -> list[Question]:
    """Minimal pairs in the form of BLiMP (Warstadt et al. 2020, arXiv:1912.00582): columns `good`, `bad` and `group`.

    Groups take turns, so that the first few questions are a fair sample of them all.
    """
    rows = _rows(Path(path), ("good", "bad", group))
    return _taking_turns([Question((row["good"], row["bad"]), 0, group=str(row[group])) for row in rows])


def multiple_choice(path: Path | str) -> list[Question]:
    """Questions with the columns `query`, `choices` and `gold` (a number from 0)."""
    rows = _rows(Path(path), ("query", "choices", "gold"))
    return [Question(tuple(row["choices"]), int(row["gold"]), row["query"]) for row in rows]


def write_task(folder: Path | str, name: str, questions: Iterable[Question]) -> Path:
    """Write NAME.jsonl and NAME.yaml into `folder`, both or none; returns the path of the YAML.

    A choice stands behind its context and a space; without a context it is the whole text, and no space is added.

    Raises:
        DataError: no questions, some with and some without a context, a name or a place that cannot be used.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise DataError(f"{name!r} cannot name a task; use letters, digits, _ and -")
    rows = [question.row() for question in questions]
    if not rows:
        raise DataError(f"the task {name} has no questions; give at least one")
    with_context = sum(bool(row["context"]) for row in rows)
    if with_context not in (0, len(rows)):
        raise DataError(f"{with_context} of {len(rows)} questions of {name} have a context; expected all or none")
    folder = Path(folder).absolute()
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(folder / ".cache")},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "target_delimiter": " " if with_context else "",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in (("acc", "acc_norm") if with_context else ("acc",))
        ],
        "metadata": {"version": 1.0},
    }
    with whole_folder(folder) as partial:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (partial / f"{name}.jsonl").write_text("".join(lines), "utf-8")
        (partial / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False), "utf-8")
    return folder / f"{name}.yaml"


def _taking_turns(questions: Iterable[Question]) -> list[Question]:
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.group].append(question)
    turns = zip_longest(*groups.values())
    return [question for question in chain.from_iterable(turns) if question is not None]


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """JSON objects, one a line, of a file that may be packed by xz."""
    opened = lzma.open if path.suffix == ".xz" else open
    try:
        with opened(path, "rt", encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                missing = [column for column in columns if column not in row]
                if missing:
                    raise DataError(f"{path}, line {number} has no {missing[0]!r}; expected {', '.join(columns)}")
                yield row
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, EOFError, lzma.LZMAError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} does not hold one JSON object a line: {error}") from error
