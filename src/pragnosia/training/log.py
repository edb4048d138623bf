"""The log of a run: one JSON object per line, and the same numbers for TensorBoard.

A resumed run forgets the lines after the step it resumes from, so the log reads as if nothing had happened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, final

from pragnosia.training.checkpoint import write_whole

LOG = "log.jsonl"
Record = Mapping[str, Any]


class _Scalars(Protocol):
    """The part of tensorboard's SummaryWriter that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...
    def close(self) -> None: ...


@final
class RunLog:
    """Appends records; each is on its way to disk before the next step begins."""

    def __init__(self, folder: Path, *, tensorboard: bool, after: int = 0) -> None:
        self.path = folder / LOG
        kept = [record for record in read_log(self.path) if record["step"] <= after]
        write_whole(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self.file = self.path.open("a", encoding="utf-8")
        self.board = _board(folder / "tensorboard", after) if tensorboard else None

    def write(self, record: Record) -> None:
        """One line; a number is also a scalar for TensorBoard."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        if self.board is not None:
            for key, value in record.items():
                if key != "step" and isinstance(value, int | float):
                    self.board.add_scalar(key, value, record["step"])

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole records of a log, in order; a line cut short by a crash does not count."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _board(folder: Path, after: int) -> _Scalars:
    from torch.utils.tensorboard import SummaryWriter  # half a second to import

    board: _Scalars = SummaryWriter(str(folder), purge_step=after + 1)
    return board
