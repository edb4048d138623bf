"""The episodic store: lessons in an SQLite file, each written whole or not at all, the least worth forgotten for room.

store = EpisodicStore.open(folder, header)
store.write([episode])          # a lesson that is there already is repeated, not kept twice
store.by_words(["zorvia"])      # ids, by BM25
store.forget([3])               # gone from every page of the file
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pragnosia.errors import StoreError
from pragnosia.store.episode import KEY, TOKEN, Episode, text_digest, worth
from pragnosia.store.opening import FILE, Header, check_header, connect, create, explained, is_made, read_header
from pragnosia.store.words import words_of
from pragnosia.units import GIB, format_bytes

LIMIT = GIB
"""Bytes of the file, unless said otherwise."""
_SPARE = 0.05  # of the bound, freed at once where room is short
_DAY = 86400.0
_COLUMNS = "id, text, source, taught, repetitions, tokens, starts, surprises, keys"
_MARKS = "CREATE TABLE IF NOT EXISTS consolidated (id INTEGER PRIMARY KEY)"  # a store without marks has none


@dataclass(frozen=True)
class Written:
    """What became of lessons: the ids they have, those that were there before, those that were forgotten for room."""

    ids: tuple[int, ...]
    repeated: tuple[int, ...] = ()
    evicted: tuple[int, ...] = ()


class EpisodicStore:
    """An open store. Reading needs no lock; two writers wait for each other."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, header: Header) -> None:
        self.folder, self.header, self._connection = folder, header, connection

    @classmethod
    def open(
        cls, folder: str | Path, wanted: Header, *, readonly: bool = False, limit: int | None = None, **ways: Any
    ) -> EpisodicStore:
        """The store in `folder`, made unless `readonly`; `limit` bounds one that is there anew.

        Raises StoreError for a store of another model, a newer form, a damaged file, or a folder nobody can write to.
        """
        place = Path(folder)
        if not readonly:
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"cannot make the store {place}: {error.strerror}; name another --store") from error
        elif not holds_store(place):
            raise StoreError(f"there is no store at {place}; teach something first (pragnosia teach)")
        connection = connect(place, readonly=readonly, **ways)
        try:
            with explained(place):
                if not readonly and not is_made(connection):
                    create(connection, wanted)
                header = read_header(connection, place)
                check_header(header, wanted, place)
                store = cls(place, connection, header)
                if limit is not None and limit != header.limit:
                    store._bound(limit)
        except BaseException:
            connection.close()
            raise
        return store

    @classmethod
    def peek(cls, folder: str | Path, *, readonly: bool = True) -> EpisodicStore:
        """The store in `folder`, whoever made it. Raises StoreError."""
        place = Path(folder)
        if not holds_store(place):
            raise StoreError(f"there is no store at {place}; teach something first (pragnosia teach)")
        connection = connect(place, readonly=readonly)
        try:
            with explained(place):
                return cls(place, connection, read_header(connection, place))
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def __enter__(self) -> EpisodicStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, episodes: Sequence[Episode]) -> Written:
        """Keep lessons, in one transaction. Raises StoreError where there is no room, or another writer stays."""
        for episode in episodes:
            if episode.width != self.header.width:
                raise StoreError(f"keys of width {episode.width} do not fit a store of width {self.header.width}")
            if episode.nbytes > self.header.limit * (1 - _SPARE):
                raise StoreError(
                    f"a lesson takes {format_bytes(episode.nbytes)}, the store {self.folder} may have "
                    f"{format_bytes(self.header.limit)}; raise --limit, or teach less at once"
                )
        ids: list[int] = []
        repeated: list[int] = []
        evicted: list[int] = []
        with self._transaction():
            for episode in episodes:
                known = self._row("SELECT id FROM episodes WHERE digest = ?", episode.digest)
                if known is not None:
                    self._again(known[0], episode)
                    repeated.append(known[0])
                else:
                    evicted += self._make_room(episode.nbytes, sparing=ids)
                ids.append(known[0] if known is not None else self._insert(episode))
            self._mark([id_ for id_, episode in zip(ids, episodes, strict=True) if episode.consolidated])
        while self.used_bytes > self.header.limit:  # words take their room as the transaction ends
            with self._transaction():
                gone = self._make_room(0, sparing=ids)
            evicted += gone
            if not gone:
                break
        return Written(tuple(ids), tuple(repeated), tuple(evicted))

    def consolidate(self, ids: Iterable[int]) -> None:
        """Mark lessons that the model knows by itself: where room is short they go first. Raises StoreError."""
        asked = list(ids)
        with self._transaction():
            self._mark(id_ for id_ in asked if self._row("SELECT 1 FROM episodes WHERE id = ?", id_))

    def forget(self, ids: Iterable[int]) -> list[int]:
        """Remove lessons from every page of the file and its log; those that were there. Raises StoreError."""
        asked = list(ids)
        with self._transaction():
            gone = [id_ for id_ in asked if self._row("SELECT 1 FROM episodes WHERE id = ?", id_)]
            self._delete(gone)
            if gone:  # the words of what was deleted wait in old segments until these are written anew
                self._connection.execute("INSERT INTO lexicon(lexicon) VALUES ('rebuild')")
        if gone:
            for path in self.folder.glob("neighbours.*"):  # the derived index holds their keys
                path.unlink(missing_ok=True)
            with explained(self.folder):
                self._empty_log()
        return gone

    def compact(self) -> tuple[int, int]:
        """Give back the room of what is gone; bytes before and after. Raises StoreError."""
        before = self.file_bytes
        with explained(self.folder):
            self._connection.execute("INSERT INTO lexicon(lexicon) VALUES ('optimize')")
            self._connection.execute("VACUUM")
            self._empty_log()
        return before, self.file_bytes

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, ids: Iterable[int]) -> list[Episode]:
        """Lessons by id, those that are there."""
        with explained(self.folder):
            rows = [self._row(f"SELECT {_COLUMNS} FROM episodes WHERE id = ?", int(id_)) for id_ in ids]
        return [self._episode(row) for row in rows if row is not None]

    def after(self, last: int = 0) -> Iterator[Episode]:
        """Lessons in the order they came, those behind the id `last`."""
        with explained(self.folder):
            for row in self._connection.execute(f"SELECT {_COLUMNS} FROM episodes WHERE id > ? ORDER BY id", (last,)):
                yield self._episode(row)

    def find(self, text: str) -> int | None:
        """The id of the lesson that says just this."""
        with explained(self.folder):
            row = self._row("SELECT id FROM episodes WHERE digest = ?", text_digest(text))
        return None if row is None else int(row[0])

    def texts(self) -> Iterator[tuple[int, str]]:
        """Of every lesson its id and what it says, white space at the ends left out."""
        with explained(self.folder):
            for id_, text in self._connection.execute("SELECT id, text FROM episodes ORDER BY id"):
                yield int(id_), str(text).strip()

    def by_words(self, words: Iterable[str], most: int) -> list[tuple[int, float]]:
        """Lessons in which any of these stands, the best first, with their BM25 (higher is better)."""
        asked = " OR ".join(f'"{word}"' for word in words)
        if not asked:
            return []
        command = "SELECT rowid, bm25(lexicon) FROM lexicon WHERE lexicon MATCH ? ORDER BY bm25(lexicon) LIMIT ?"
        with explained(self.folder):
            return [(int(id_), -score) for id_, score in self._connection.execute(command, (asked, most))]

    def lessons_with(self, word: str) -> int:
        """In how many lessons a word stands."""
        row = self._row("SELECT doc FROM spread WHERE term = ?", word)
        return 0 if row is None else int(row[0])

    @property
    def consolidated(self) -> set[int]:
        """The ids of the lessons that the model knows by itself."""
        with explained(self.folder):
            if self._row("SELECT 1 FROM sqlite_master WHERE name = 'consolidated'") is None:
                return set()
            return {int(row[0]) for row in self._connection.execute("SELECT id FROM consolidated")}

    @property
    def version(self) -> tuple[int, int, int]:
        """Changes whenever lessons do: how many, the last id, and all that ever were."""
        with explained(self.folder):
            row: Any = self._row(
                "SELECT (SELECT count(*) FROM episodes), (SELECT ifnull(max(id), 0) FROM episodes), "
                "(SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE name = 'episodes')"
            )
        return int(row[0]), int(row[1]), int(row[2])

    @property
    def num_entries(self) -> int:
        """Of all lessons."""
        row: Any = self._row("SELECT ifnull(sum(entries), 0) FROM episodes")
        return int(row[0])

    def damage(self) -> str:
        """What SQLite finds wrong with the file; `ok` where nothing is."""
        row: Any = self._row("PRAGMA integrity_check")
        return str(row[0])

    def entries_up_to(self, last: int) -> tuple[int, int]:
        """Lessons with ids up to `last`, and entries of theirs."""
        row: Any = self._row("SELECT count(*), ifnull(sum(entries), 0) FROM episodes WHERE id <= ?", last)
        return int(row[0]), int(row[1])

    @property
    def file_bytes(self) -> int:
        """What the file takes now, with its log."""
        return sum(path.stat().st_size for path in self.folder.glob(FILE + "*"))

    @property
    def used_bytes(self) -> int:
        """Of the file, what holds something."""
        pages, free, size = (self._pragma(name) for name in ("page_count", "freelist_count", "page_size"))
        return (pages - free) * size

    def stats(self) -> dict[str, Any]:
        """What is in it, for people and JSON."""
        with explained(self.folder):
            row: Any = self._row(
                "SELECT count(*), ifnull(sum(entries), 0), ifnull(sum(repetitions), 0), ifnull(avg(surprise), 0), "
                "ifnull(min(taught), 0), ifnull(max(taught), 0), count(DISTINCT source) FROM episodes"
            )
            names = ("episodes", "entries", "lessons_taught", "mean_surprise", "oldest", "newest", "sources")
            values = dict(zip(names, row, strict=True))
            used = self.used_bytes
        return {
            "store": str(self.folder),
            **values,
            "consolidated": len(self.consolidated),
            "bytes": used,
            "limit": self.header.limit,
            "bytes_per_entry": used / max(values["entries"], 1),
            "width": self.header.width,
        }

    # -- inside -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Everything in it, or nothing."""
        with explained(self.folder):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has rolled back already
                    self._connection.execute("ROLLBACK")
                raise

    def _insert(self, episode: Episode) -> int:
        values = {
            "digest": episode.digest,
            "text": episode.text,
            "source": episode.source,
            "taught": episode.taught,
            "repetitions": episode.repetitions,
            "surprise": episode.surprise,
            "entries": len(episode.surprises),
            "nbytes": episode.nbytes,
            "tokens": episode.tokens.astype(TOKEN).tobytes(),
            "starts": episode.starts.astype(TOKEN).tobytes(),
            "surprises": episode.surprises.astype(KEY).tobytes(),
            "keys": episode.keys.astype(KEY).tobytes(),
        }
        marks = ", ".join("?" * len(values))
        command = f"INSERT INTO episodes ({', '.join(values)}) VALUES ({marks})"
        id_ = self._connection.execute(command, tuple(values.values())).lastrowid
        said = " ".join(word.text for word in words_of(episode.text))
        self._connection.execute("INSERT INTO lexicon (rowid, words) VALUES (?, ?)", (id_, said))
        return int(id_ or 0)

    def _again(self, id_: int, episode: Episode) -> None:
        """Taught once more: it counts, and it is new."""
        command = "UPDATE episodes SET repetitions = repetitions + ?, taught = max(taught, ?) WHERE id = ?"
        self._connection.execute(command, (episode.repetitions, episode.taught, id_))

    def _mark(self, ids: Iterable[int]) -> None:
        rows = [(id_,) for id_ in ids]
        if rows:
            self._connection.execute(_MARKS)
            self._connection.executemany("INSERT OR IGNORE INTO consolidated VALUES (?)", rows)

    def _delete(self, ids: Sequence[int]) -> None:
        marked = (("consolidated", "id"),) if self.consolidated else ()
        for table, column in (("lexicon", "rowid"), ("episodes", "id"), *marked):
            self._connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(id_,) for id_ in ids])

    def _make_room(self, nbytes: int, sparing: Sequence[int] = ()) -> list[int]:
        """Forget until `nbytes` fit under the bound: what is consolidated first, then the least worth. Who it was."""
        excess = self.used_bytes + nbytes - self.header.limit
        if excess <= 0:
            return []
        excess += int(_SPARE * self.header.limit)
        now, spared, known = time.time(), set(sparing), self.consolidated
        rows = self._connection.execute("SELECT id, surprise, repetitions, taught, nbytes FROM episodes").fetchall()
        rows.sort(key=lambda row: (row[0] not in known, worth(row[1], row[2], (now - row[3]) / _DAY)))
        gone: list[int] = []
        for id_, *_, size in rows:
            if excess <= 0:
                break
            if id_ not in spared:
                gone.append(id_)
                excess -= size
        self._delete(gone)
        return gone

    def _bound(self, limit: int) -> None:
        """Another bound; what is too much is forgotten."""
        if limit <= 0:
            raise StoreError(f"--limit is {limit}; a store needs room, as in 256MiB")
        self.header = Header(**{**self.header.__dict__, "limit": limit})
        with self._transaction():
            self._connection.execute("UPDATE header SET value = ? WHERE name = 'limit'", (str(limit),))
            self._make_room(0)

    def _empty_log(self) -> None:
        """The log holds pages as they were: it is written back and cut to nothing."""
        busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise StoreError(
                f"it is gone from {self.folder}, but another process is reading there, and the log still holds "
                "the old pages; run `memory compact` when that one has left"
            )

    def _row(self, command: str, *values: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._connection.execute(command, values).fetchone()
        return row

    def _pragma(self, name: str) -> int:
        row: Any = self._row(f"PRAGMA {name}")
        return int(row[0])

    def _episode(self, row: tuple[Any, ...]) -> Episode:
        id_, text, source, taught, repetitions, *blobs = row
        tokens, starts = (np.frombuffer(blob, TOKEN) for blob in blobs[:2])
        surprises, keys = (np.frombuffer(blob, KEY) for blob in blobs[2:])
        shaped: NDArray[np.float16] = keys.reshape(-1, self.header.width)
        return Episode(
            id=id_,
            text=text,
            source=source,
            taught=taught,
            repetitions=repetitions,
            tokens=tokens,
            starts=starts,
            surprises=surprises,
            keys=shaped,
        )


def holds_store(folder: str | Path) -> bool:
    """Whether a store lies there."""
    return (Path(folder) / FILE).is_file()
