"""Documents from files: plain text, JSON lines and Parquet, compressed or not, alone or in folders.

A text file holds one document, or several separated by lines that say `<|endoftext|>`.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from pragnosia.data.rows import PLAIN, Rows
from pragnosia.errors import DataError

SEPARATOR = "<|endoftext|>"
# A longer text is cut at a line end into documents of about this many characters, so that memory stays bounded.
MAX_DOCUMENT_CHARS = 8 * 1024**2
_BLOCK = 1024**2
_BEGINNING = 64 * 1024

_OPENERS: dict[str, Callable[[Path], Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_TABLES = (".jsonl", ".ndjson", ".parquet")
Row = Mapping[str, object]
_TEXTS = (
    ".txt", ".text", ".md", ".rst", ".tex", ".org", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs",
    ".go", ".java", ".kt", ".js", ".ts", ".rb", ".sh", ".sql", ".r", ".jl", ".hs", ".lua", ".toml", ".yaml", ".yml",
)  # fmt: skip


@dataclass(frozen=True)
class Files:
    """A text file, a table, every one of them below a folder, or those that a pattern means, in sorted order."""

    root: Path
    rows: Rows = PLAIN

    @property
    def name(self) -> str:
        return str(self.root)

    def paths(self) -> list[Path]:
        """The files that are read. Raises DataError for a place that is missing, closed or holds none."""
        try:
            if is_pattern(self.root):
                return self._matching()
            if not self.root.exists():
                raise DataError(f"no such file or folder: {self.root}")
            if not self.root.is_dir():
                return [self.root]
            found = sorted(path for path in _walk(self.root) if _kind(path) in (*_TABLES, *_TEXTS))
        except OSError as error:
            raise DataError(f"cannot read {error.filename or self.root}: {error.strerror}") from error
        if not found:
            raise DataError(f"no text in the folder {self.root}; expected .txt, .md, .py, .jsonl, .parquet or the like")
        return found

    def _matching(self) -> list[Path]:
        """The files that the root, a pattern, means. Raises DataError for none."""
        beginning = Path(self.root.anchor)
        matching = beginning.glob(str(self.root.relative_to(beginning)))
        found = sorted(path for path in matching if path.is_file() and not path.name.startswith("."))
        if not found:
            raise DataError(f"no file matches {self.root}")
        return found

    def check(self) -> None:
        """Raise DataError where a file is no text from its beginning, or cannot be opened."""
        for path in self.paths():
            if _kind(path) not in _TABLES:
                _check_beginning(path)

    def documents(self) -> Iterator[str]:
        empty = True
        for path in self.paths():
            for text in _read(path, self.rows):
                empty = False
                yield text
        if empty:
            raise DataError(f"{self.root} is empty: it holds no text")

    def records(self) -> Iterator[tuple[str, Row | str]]:
        """Where each row of a table stands and the whole row; of a text file, each document.

        Raises DataError for a file that is neither by its suffix: other tables would pass for prose.
        """
        for path in self.paths():
            kind = _kind(path)
            if kind not in ("", ".json", *_TABLES, *_TEXTS):
                raise DataError(f"cannot read {path}: unknown suffix {kind!r}; expected .jsonl, .parquet or .txt")
            with _told(path):
                if kind == ".parquet":
                    yield from _parquet_rows(path)
                elif kind == ".json":
                    yield from _json_array(path)
                elif kind in _TABLES:
                    yield from _json_rows(path)
                else:
                    yield from ((str(path), text) for text in _text_documents(path))

    def identity(self) -> dict[str, object]:
        stats = [(path, path.stat()) for path in self.paths()]
        files = [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        return {"files": files, "rows": self.rows.identity()}


def is_pattern(root: Path) -> bool:
    """Whether `root` means files by a pattern: it has wildcards, and nothing of that very name is there."""
    return has_magic(str(root)) and not root.exists()


def _walk(root: Path) -> Iterator[Path]:
    """Every file below `root`, hidden ones left out."""

    def refuse(error: OSError) -> NoReturn:
        raise error

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        yield from (Path(folder) / name for name in names if not name.startswith("."))


def _kind(path: Path) -> str:
    """The suffix that says what a file holds, compression aside: `a.jsonl.xz` -> `.jsonl`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _read(path: Path, rows: Rows) -> Iterator[str]:
    kind = _kind(path)
    with _told(path):
        if kind == ".parquet":
            yield from rows.documents(_parquet_rows(path, rows))
        elif kind in _TABLES:
            yield from rows.documents(_json_rows(path))
        else:
            yield from _text_documents(path)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever keeps `path` from being read within the block, said as a DataError."""
    try:
        yield
    except UnicodeDecodeError:
        _refuse_binary(path)
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"cannot read {path}: damaged or cut short ({error})") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _open_bytes(path: Path) -> IO[bytes]:
    opener = _OPENERS.get(path.suffix.lower())
    return path.open("rb") if opener is None else cast("IO[bytes]", opener(path))


def _text_documents(path: Path) -> Iterator[str]:
    with io.TextIOWrapper(_open_bytes(path), encoding="utf-8-sig") as stream:
        lines: list[str] = []
        size = 0
        while line := stream.readline(MAX_DOCUMENT_CHARS):
            separates = line.startswith(SEPARATOR) and line.strip() == SEPARATOR
            if not separates:
                lines.append(line)
                size += len(line)
            if separates or size >= MAX_DOCUMENT_CHARS:
                yield from _document(path, lines, before_separator=separates)
                lines, size = [], 0
        yield from _document(path, lines, before_separator=False)


def _document(path: Path, lines: list[str], *, before_separator: bool) -> Iterator[str]:
    text = "".join(lines)
    if "\0" in text:
        _refuse_binary(path)
    if before_separator:
        text = text.removesuffix("\n")  # that line end belongs to the separator
    if text.strip():
        yield text


def _check_beginning(path: Path) -> None:
    with _told(path):
        with _open_bytes(path) as stream:
            block = stream.read(_BEGINNING)
        codecs.getincrementaldecoder("utf-8")().decode(block)
    if b"\0" in block:
        _refuse_binary(path)


def _refuse_binary(path: Path) -> NoReturn:
    """Say where a file stops being text; read anew, for a stream does not tell."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with _open_bytes(path) as stream:
        while block := stream.read(_BLOCK):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
                nul = block.find(b"\0")
            except UnicodeDecodeError as error:
                nul = block[: max(0, error.start - pending)].find(b"\0")
                if nul < 0:
                    at = offset - pending + error.start
                    raise DataError(f"{path} is not UTF-8 text: invalid byte at offset {at}; convert it") from None
            if nul >= 0:
                raise DataError(f"{path} is not text: NUL byte at offset {offset + nul}; expected UTF-8 text")
            offset += len(block)
    raise DataError(f"{path} is not UTF-8 text: it ends inside a character, at offset {offset}; convert it")


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    # newline="\n": U+2028 and U+0085 are text inside a JSON line, not its end.
    with io.TextIOWrapper(_open_bytes(path), encoding="utf-8-sig", newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, _object(_parsed(line, where), where)


def _json_array(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of one array that fills a file, as `json.dump` of a list writes it."""
    with io.TextIOWrapper(_open_bytes(path), encoding="utf-8-sig") as stream:
        rows = _parsed(stream.read(), str(path))
    if not isinstance(rows, list):
        raise DataError(f"{path} holds {type(rows).__name__}, expected an array of objects; or use .jsonl")
    for number, row in enumerate(rows):
        where = f"{path}, row {number}"
        yield where, _object(row, where)


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {str(error).splitlines()[0]}") from None


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{where} holds {type(row).__name__}, expected a JSON object")
    return row


def _parquet_rows(path: Path, rows: Rows | None = None) -> Iterator[tuple[str, Row]]:
    """Those columns that `rows` needs; without it, all."""
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as table:
            columns: Sequence[str] | None = None
            if rows is not None:
                rows.check(table.schema_arrow.names, str(path))
                columns = list(rows.columns)
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except ArrowException as error:
        raise DataError(f"cannot read {path} as Parquet: {str(error).splitlines()[0]}") from error
