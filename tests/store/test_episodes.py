"""Lessons are kept whole or not at all, come back as they were, and go for good."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pragnosia.errors import StoreError
from pragnosia.store.episode import Episode, worth
from pragnosia.store.episodes import EpisodicStore
from pragnosia.store.opening import FILE, Header, connect, create

Make = Callable[..., Episode]
DAY = 86400.0


def bytes_of(folder: Path) -> bytes:
    """Of every file of the store."""
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


def test_a_lesson_comes_back_as_it_was(store: EpisodicStore, lesson: Make) -> None:
    given = lesson("The capital of Zorvia is Plem.", source="atlas", taught=5.0)
    written = store.write([given])
    assert written.repeated == written.evicted == ()
    (found,) = store.get(written.ids)
    assert (found.text, found.source, found.taught, found.repetitions) == (given.text, "atlas", 5.0, 1)
    for name in ("tokens", "starts", "keys", "surprises"):
        assert np.array_equal(getattr(found, name), getattr(given, name)), name


def test_what_is_taught_again_is_kept_once(store: EpisodicStore, lesson: Make) -> None:
    first = store.write([lesson("Brun lies by the sea.", taught=1.0)])
    again = store.write([lesson(" Brun lies by the sea.\n", taught=2.0)])
    assert again.ids == again.repeated == first.ids
    (found,) = store.get(first.ids)
    assert (found.repetitions, found.taught) == (2, 2.0)


def test_words_find_lessons(store: EpisodicStore, lesson: Make) -> None:
    ids = store.write([lesson("The capital of Zorvia is Plem."), lesson("Brun's mayor is Tal.")]).ids
    assert [id_ for id_, _ in store.by_words(["zorvia", "brun"], 5)] in (list(ids), list(reversed(ids)))
    assert [id_ for id_, _ in store.by_words(["brun"], 5)] == [ids[1]]
    assert store.by_words([], 5) == store.by_words(["unheard"], 5) == []
    assert (store.lessons_with("is"), store.lessons_with("mayor"), store.lessons_with("unheard")) == (2, 1, 0)


def test_forgetting_leaves_nothing(store: EpisodicStore, lesson: Make) -> None:
    store.write([lesson(f"Lesson number {number} is about nothing.", number) for number in range(50)])
    secret = lesson("The safe of Quillon opens with 7391.", 99)
    (id_,) = store.write([secret]).ids
    store.compact()
    marks = (b"Quillon", b"quillon", b"7391", secret.keys.tobytes(), secret.tokens.tobytes())
    assert all(mark in bytes_of(store.folder) for mark in marks)
    assert store.forget([id_, 12345]) == [id_]
    left = bytes_of(store.folder)
    assert not any(mark in left for mark in marks)
    assert store.get([id_]) == []
    assert store.by_words(["quillon"], 5) == []
    assert store.write([lesson("Another one.")]).ids[0] > id_, "a number is not used again"


def test_forgetting_takes_the_index_along(store: EpisodicStore, lesson: Make) -> None:
    (id_,) = store.write([lesson("Brun lies by the sea.")]).ids
    for name in ("neighbours.faiss", "neighbours.json"):
        (store.folder / name).write_text("keys")
    store.forget([id_])
    assert not list(store.folder.glob("neighbours.*"))


def test_worth() -> None:
    assert worth(5, 1, 0) > worth(1, 1, 0)
    assert worth(5, 3, 0) > worth(5, 1, 0)
    assert worth(5, 1, 0) > worth(5, 1, 60)


def test_the_bound_holds_and_the_least_worth_goes(tmp_path: Path, header: Header, lesson: Make) -> None:
    small = replace(header, limit=200_000)
    dull = np.full(99, 0.01, np.float16)
    with EpisodicStore.open(tmp_path, small) as store:
        words = " ".join(f"w{number}" for number in range(99))
        kept, evicted = set(), set()
        for number in range(150):
            text = f"t{number} {words}"
            changes = {} if number % 2 else {"surprises": dull}
            written = store.write([lesson(text, number, **changes)])
            kept |= set(written.ids)
            evicted |= set(written.evicted)
            assert store.used_bytes <= small.limit
        left = {episode.id: episode for episode in store.after()}
        assert evicted
        assert set(left) == kept - evicted
        assert all(episode.surprise > 1 for episode in left.values() if episode.id < max(left) - 4), (
            "the dull went first"
        )
    with EpisodicStore.open(tmp_path, small, limit=100_000) as store:
        assert store.used_bytes <= 100_000
    with pytest.raises(StoreError, match="raise --limit"), EpisodicStore.open(tmp_path, small, limit=1000) as store:
        store.write([lesson(f"z {words}")])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "model-b"}, ("made by another model", "--no-memory")),
        ({"tokenizer": "tokens-b"}, ("its tokenizer is tokens-a", "tokens-b")),
        ({"width": 16}, ("width",)),
    ],
)
def test_another_models_store_is_refused(
    store: EpisodicStore, header: Header, changes: dict[str, object], words: tuple[str, ...]
) -> None:
    with pytest.raises(StoreError) as refused:
        EpisodicStore.open(store.folder, replace(header, **changes))
    assert all(word in str(refused.value) for word in words)
    assert "\n" not in str(refused.value)


def test_a_newer_form_is_refused(store: EpisodicStore, header: Header) -> None:
    connection = connect(store.folder)
    connection.execute("UPDATE header SET value = '9' WHERE name = 'form'")
    connection.close()
    with pytest.raises(StoreError, match="form 9, written by a newer"):
        EpisodicStore.open(store.folder, header)
    with pytest.raises(StoreError, match="newer"):
        EpisodicStore.peek(store.folder)


def test_what_is_no_store_is_told(tmp_path: Path, header: Header) -> None:
    with pytest.raises(StoreError, match="teach something first"):
        EpisodicStore.open(tmp_path / "none", header, readonly=True)
    (tmp_path / FILE).write_bytes(b"no database at all, but long enough to look like one" * 50)
    for opening in (lambda: EpisodicStore.open(tmp_path, header), lambda: EpisodicStore.peek(tmp_path)):
        with pytest.raises(StoreError, match="damaged or no store"):
            opening()
    (tmp_path / FILE).unlink()
    connection = connect(tmp_path)
    connection.execute("CREATE TABLE guests (name TEXT)")
    connection.close()
    with pytest.raises(StoreError, match="no store of episodes"):
        EpisodicStore.open(tmp_path, header)


def test_no_room_on_disk_loses_nothing(store: EpisodicStore, lesson: Make) -> None:
    (id_,) = store.write([lesson("Brun lies by the sea.")]).ids
    pages = store._pragma("page_count")
    store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    many = [lesson(f"a{number} " + "word " * 400, number) for number in range(40)]
    with pytest.raises(StoreError, match="no room on disk"):
        store.write(many)
    assert [episode.id for episode in store.after()] == [id_]
    store._connection.execute("PRAGMA max_page_count = 100000")
    assert len(store.write(many).ids) == 40


def test_two_writers(store: EpisodicStore, header: Header, lesson: Make) -> None:
    store.write([lesson("Brun lies by the sea.")])
    with EpisodicStore.open(store.folder, header, patience_ms=1) as other:
        store._connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process is writing"):
            other.write([lesson("Tal is a painter.")])
        assert len(list(other.after())) == 1, "reading needs no lock"
        store._connection.execute("COMMIT")
        other.write([lesson("Tal is a painter.")])
    assert [episode.text for episode in store.after()] == ["Brun lies by the sea.", "Tal is a painter."]


def test_two_who_make_it_at_once(tmp_path: Path, header: Header) -> None:
    first, second = connect(tmp_path), connect(tmp_path)
    create(first, header)
    create(second, replace(header, model="late"))
    first.close()
    second.close()
    with EpisodicStore.open(tmp_path, header) as store:
        assert store.header == header


def test_reading_alone_needs_no_writing(
    store: EpisodicStore, header: Header, lesson: Make, permissions_bind: None
) -> None:
    store.write([lesson("Brun lies by the sea.")])
    store.close()
    store.folder.chmod(0o500)
    (store.folder / FILE).chmod(0o400)
    try:
        with EpisodicStore.open(store.folder, header, readonly=True) as reader:
            assert [episode.text for episode in reader.after()] == ["Brun lies by the sea."]
            with pytest.raises(StoreError, match="cannot write"):
                reader.write([lesson("Tal is a painter.")])
    finally:
        store.folder.chmod(0o700)


_WRITER = """
    import sys
    sys.path.insert(0, sys.argv[2])
    from conftest import HEADER, make_lesson
    from pragnosia.store.episodes import EpisodicStore
    store = EpisodicStore.open(sys.argv[1], HEADER)
    number = 0
    while True:
        ids = store.write([make_lesson(f"lesson {number} of many", number)]).ids
        print(ids[0], flush=True)
        number += 1
"""


def test_what_was_written_outlives_kill_9(tmp_path: Path, header: Header) -> None:
    command = [sys.executable, "-c", textwrap.dedent(_WRITER), str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(12)]
        writer.send_signal(signal.SIGKILL)
    with EpisodicStore.open(tmp_path, header) as store:
        found = [episode.id for episode in store.after()]
        assert found[:12] == told
        assert store.damage() == "ok"
        assert all(episode.text == f"lesson {episode.id - 1} of many" for episode in store.after())
