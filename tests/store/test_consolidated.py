"""Lessons that the model knows by itself: marked, told, gone first for room, and a store without marks as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pragnosia.store.episode import Episode
from pragnosia.store.episodes import EpisodicStore
from pragnosia.store.opening import Header
from pragnosia.store.travel import episodes, export

Make = Callable[..., Episode]


def tables(store: EpisodicStore) -> set[str]:
    return {row[0] for row in store._connection.execute("SELECT name FROM sqlite_master")}


def test_marks_come_and_go(store: EpisodicStore, header: Header, lesson: Make, tmp_path: Path) -> None:
    first, second = store.write([lesson("Brun lies by the sea."), lesson("Tal is a painter.")]).ids
    assert store.consolidated == set()
    assert "consolidated" not in tables(store), "whoever knows nothing of sleep reads the store as before"
    assert store.stats()["consolidated"] == 0
    store.consolidate([first, second, 99])
    assert store.consolidated == {first, second}
    export(store, tmp_path / "out")
    store.forget([first])
    assert store.consolidated == {second}
    assert store.stats()["consolidated"] == 1
    with EpisodicStore.open(store.folder, header, readonly=True) as reader:
        assert reader.consolidated == {second}
    with EpisodicStore.open(tmp_path / "new", header) as new:
        new.write(list(episodes(tmp_path / "out")))
        assert len(new.consolidated) == 2


def test_what_is_known_goes_first(tmp_path: Path, header: Header, lesson: Make) -> None:
    words = " ".join(f"w{number}" for number in range(99))
    with EpisodicStore.open(tmp_path, replace(header, limit=200_000)) as store:
        (known,) = store.write([lesson(f"known {words}", repetitions=50)]).ids
        store.consolidate([known])
        evicted: list[int] = []
        while not evicted:
            evicted += store.write([lesson(f"t{store.version[2]} {words}", store.version[2])]).evicted
        assert evicted[0] == known
        assert store.consolidated == set()
