"""Rows: how documents are read out of tables (JSON lines, Parquet, datasets on the hub)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pragnosia.errors import DataError, unknown_name


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which column is the text, which rows count, and where a document begins."""

    column: str = "text"
    # Column -> the values that are let in; every other row is passed over.
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # A pattern of the rows that begin a document, for tables that hold one paragraph a row; None: one document a row.
    begins: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column, *self.only)

    def check(self, columns: Iterable[str], where: str) -> None:
        """Raise DataError, naming the nearest column, where one that is needed is missing."""
        known = list(columns)
        for name in self.columns:
            if name not in known:
                raise DataError(f"{where}: {unknown_name('column', name, known)}")

    def documents(self, rows: Iterable[tuple[str, Mapping[str, object]]]) -> Iterator[str]:
        """The texts of `rows`, pairs of where a row stands and the row; empty ones are passed over."""
        texts = self._texts(rows)
        return (text for text in (texts if self.begins is None else self._joined(texts)) if text.strip())

    def identity(self) -> dict[str, object]:
        return {"column": self.column, "only": {k: list(v) for k, v in self.only.items()}, "begins": self.begins}

    def _texts(self, rows: Iterable[tuple[str, Mapping[str, object]]]) -> Iterator[str]:
        for where, row in rows:
            self.check(row, where)
            if any(row[column] not in values for column, values in self.only.items()):
                continue
            text = row[self.column]
            if not isinstance(text, str):
                raise DataError(f"{where}: column {self.column!r} holds {type(text).__name__}, expected a text")
            if not text.isascii():
                check_encodable(text, where)
            yield text

    def _joined(self, texts: Iterable[str]) -> Iterator[str]:
        begins = re.compile(self.begins or "")
        pieces: list[str] = []
        for text in texts:
            if pieces and begins.fullmatch(text.strip("\n")):
                yield "".join(pieces)
                pieces = []
            pieces.append(text)
        yield "".join(pieces)


# One document a row, in a column named `text`.
PLAIN = Rows()


def check_encodable(text: str, where: str) -> None:
    """Raise DataError for half a surrogate pair, which JSON can escape and no encoder takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half a surrogate pair at character {error.start}; mend the escape") from None
