"""Opening: an SQLite file in WAL mode, its header, and every way in which it cannot be had, in one line each.

    header      what made it: form of the file, print of the model, digest of the vocabulary, width of the keys, bound
    episodes    one row a lesson; tokens, starts, surprises and keys as they lie in memory
    lexicon     FTS5 over the words, for BM25; `spread` says in how many lessons a word stands
    consolidated    ids of the lessons that the model knows by itself since it slept; made with the first of them

Every write is one transaction, and is on disk (synchronous=FULL) when it returns: whatever kills the process then
loses at most the write it is in. Pages that are given up are overwritten (secure_delete).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pragnosia.errors import StoreError

FILE = "episodes.sqlite"
FORM = 1
"""The form of the file. A newer one is refused."""
PATIENCE_MS = 5000
"""How long a writer waits for another."""

_SCHEMA = """
CREATE TABLE header (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE episodes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    digest BLOB NOT NULL UNIQUE,
    text TEXT NOT NULL,
    source TEXT NOT NULL,
    taught REAL NOT NULL,
    repetitions INTEGER NOT NULL,
    surprise REAL NOT NULL,
    entries INTEGER NOT NULL,
    nbytes INTEGER NOT NULL,
    tokens BLOB NOT NULL,
    starts BLOB NOT NULL,
    surprises BLOB NOT NULL,
    keys BLOB NOT NULL
);
CREATE VIRTUAL TABLE lexicon USING fts5(words, tokenize = "unicode61 remove_diacritics 0");
CREATE VIRTUAL TABLE spread USING fts5vocab(lexicon, row);
"""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What made a store, and how large it may become."""

    model: str
    """A print of the model whose thoughts its keys are."""
    tokenizer: str
    """A digest of the vocabulary its tokens belong to."""
    width: int
    limit: int
    """Bytes of the file, at most."""


def beside(directory: str | Path) -> Path:
    """Where a model's own store lies: in its directory, or beside its GGUF file."""
    place = Path(directory)
    return place.with_name(f"{place.name}.episodes") if place.is_file() else place / "episodes"


def connect(folder: Path, *, patience_ms: int = PATIENCE_MS, readonly: bool = False) -> sqlite3.Connection:
    """The database in `folder`, which exists. Raises StoreError for a file that is none."""
    file = folder / FILE
    with explained(folder):
        if readonly:
            connection = _reader(file)
        else:
            connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
        connection.execute(f"PRAGMA busy_timeout = {patience_ms}")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return connection


def _reader(file: Path) -> sqlite3.Connection:
    """To read alone: also where nothing can be written, as in a folder that belongs to somebody else."""
    log = file.with_name(file.name + "-wal")
    whole = not log.exists() or not log.stat().st_size  # what lies in the log alone would not be seen
    for how in ("mode=ro", "immutable=1") if whole else ("mode=ro",):
        connection = sqlite3.connect(
            f"{file.absolute().as_uri()}?{how}", uri=True, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            continue
        return connection
    raise sqlite3.OperationalError("unable to open database file")


def create(connection: sqlite3.Connection, header: Header) -> None:
    """An empty store; where another process made one meanwhile, that one."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not is_made(connection):
            for statement in _SCHEMA.strip().split(";\n"):
                connection.execute(statement)
            values = {"form": FORM, **header.__dict__}
            connection.executemany("INSERT INTO header VALUES (?, ?)", [(k, str(v)) for k, v in values.items()])
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def is_made(connection: sqlite3.Connection) -> bool:
    """Whether there is anything in the file."""
    return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def read_header(connection: sqlite3.Connection, folder: Path) -> Header:
    """What made the store. Raises StoreError for a newer form, or a database of somebody else."""
    try:
        values = dict(connection.execute("SELECT name, value FROM header").fetchall())
        form = int(values["form"])
        if form > FORM:
            raise StoreError(
                f"the store {folder} has form {form}, written by a newer Pragnosia; this one reads "
                f"up to {FORM}: update it"
            )
        width, limit = int(values["width"]), int(values["limit"])
        return Header(model=values["model"], tokenizer=values["tokenizer"], width=width, limit=limit)
    except (sqlite3.DatabaseError, KeyError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{folder / FILE} is an SQLite file, but no store of episodes; name another --store") from None


def check_header(found: Header, wanted: Header, folder: Path) -> None:
    """Raise StoreError for a store of another model or tokenizer: its keys and tokens mean nothing to this one."""
    for what, got, expected in (
        ("tokenizer", found.tokenizer, wanted.tokenizer),
        ("model", found.model, wanted.model),
        ("width", found.width, wanted.width),
    ):
        if got != expected:
            raise StoreError(
                f"the store {folder} was made by another model (its {what} is {str(got)[:12]}, this one's "
                f"{str(expected)[:12]}); name another --store, give --no-memory, or bring it over: memory export with "
                "its own model, memory import --anew with this one"
            )


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Within it SQLite's errors become one line. What was committed before stays, whichever it is."""
    try:
        yield
    except sqlite3.OperationalError as error:
        said = str(error)
        if "locked" in said or "busy" in said:
            raise StoreError(f"another process is writing to the store {folder}; nothing is lost: try again") from error
        if "full" in said or "disk I/O" in said:
            raise StoreError(
                f"no room on disk for the store {folder}: this was not written, what it held before is whole; make room"
            ) from error
        if "readonly" in said or "unable to open" in said:
            raise StoreError(f"cannot write to the store {folder} ({said}); name another --store") from error
        raise StoreError(f"the store {folder} cannot be used: {said}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{folder / FILE} is damaged or no store ({error}); put a copy back, or name another --store"
        ) from error
