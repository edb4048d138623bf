"""A store as files, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pragnosia.errors import StoreError
from pragnosia.store.episode import Episode
from pragnosia.store.episodes import EpisodicStore
from pragnosia.store.opening import Header
from pragnosia.store.travel import KEYS, LESSONS, episodes, export, made_by

Make = Callable[..., Episode]


def test_there_and_back(store: EpisodicStore, header: Header, lesson: Make, tmp_path: Path) -> None:
    store.write([lesson("Brun lies by the sea.", 1), lesson("Tal is a painter.", 2, source="notes", repetitions=3)])
    assert export(store, tmp_path / "out") == 2
    assert made_by(tmp_path / "out") == header
    with EpisodicStore.open(tmp_path / "new", header) as new:
        for episode in episodes(tmp_path / "out"):
            new.write([episode])
        for old, copied in zip(store.after(), new.after(), strict=True):
            assert (old.text, old.source, old.taught, old.repetitions) == (
                *(copied.text, copied.source, copied.taught, copied.repetitions),
            )
            assert np.array_equal(old.keys, copied.keys)
            assert np.array_equal(old.surprises, copied.surprises)
    with pytest.raises(StoreError, match="exists"):
        export(store, tmp_path / "out")


def test_what_is_broken_is_told(store: EpisodicStore, lesson: Make, tmp_path: Path) -> None:
    store.write([lesson("Brun lies by the sea."), lesson("Tal is a painter.")])
    export(store, tmp_path / "out")
    lines = (tmp_path / "out" / LESSONS).read_text("utf-8").splitlines()
    for broken, word in (
        (lines[:1], "belong to no lesson"),
        ([lines[0], lines[1][:20]], "not JSON"),
        ([lines[0], json.dumps({**json.loads(lines[1]), "surprises": [1.0]})], "does not fit"),
        ([lines[0], "[]"], "line 2"),
    ):
        (tmp_path / "out" / LESSONS).write_text("\n".join(broken), "utf-8")
        with pytest.raises(StoreError, match=word):
            list(episodes(tmp_path / "out"))
    (tmp_path / "out" / KEYS).write_bytes(b"x" * 100)
    with pytest.raises(StoreError, match="no exported store"):
        made_by(tmp_path / "out")
    with pytest.raises(StoreError, match="no exported store"):
        made_by(tmp_path)


def test_an_empty_one(tmp_path: Path, header: Header) -> None:
    with EpisodicStore.open(tmp_path / "store", replace(header, width=3)) as store:
        export(store, tmp_path / "out")
    assert list(episodes(tmp_path / "out")) == []
