"""The nearest entries: exactly where few, and as faiss finds them where many; never older than the store."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pragnosia.store.episode import Episode
from pragnosia.store.episodes import EpisodicStore
from pragnosia.store.neighbours import INDEX, STAMP, Neighbours

Make = Callable[..., Episode]


@pytest.fixture
def many(store: EpisodicStore, lesson: Make) -> EpisodicStore:
    text = " ".join(f"word{number}" for number in range(21))
    store.write([lesson(f"n{number} {text}", number) for number in range(60)])
    return store


def all_keys(store: EpisodicStore) -> np.ndarray:
    keys = np.concatenate([episode.keys.astype(np.float32) for episode in store.after()])
    unit: np.ndarray = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    return unit


def test_an_empty_store_has_none(store: EpisodicStore) -> None:
    found = Neighbours(store).search(np.ones((2, 8)), 3)
    assert found.tokens.shape == (2, 0)


def test_few_are_compared_one_by_one(many: EpisodicStore) -> None:
    neighbours, keys = Neighbours(many), all_keys(many)
    assert len(neighbours) == len(keys) == 60 * 21
    queries = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    found = neighbours.search(queries, 4)
    expected = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ keys.T
    assert np.allclose(found.similarities, -np.sort(-expected, axis=1)[:, :4], atol=1e-5)
    best = expected.argmax(1)
    assert list(found.episodes[:, 0]) == [1 + number // 21 for number in best]
    assert list(found.positions[:, 0]) == [number % 21 for number in best]
    for id_, position, token in zip(found.episodes[:, 0], found.positions[:, 0], found.tokens[:, 0], strict=True):
        assert many.get([id_])[0].tokens[position + 1] == token


def test_many_are_found_by_an_index(many: EpisodicStore, lesson: Make) -> None:
    indexed = Neighbours(many, flat=100, probes=64)
    assert (many.folder / INDEX).is_file()
    queries = all_keys(many)[::50] + 0.01
    exact = Neighbours(many).search(queries, 1)
    found = indexed.search(queries, 1)
    assert np.array_equal(found.episodes, exact.episodes)
    assert np.allclose(found.similarities, exact.similarities, atol=2e-3)
    made = (many.folder / INDEX).stat().st_mtime_ns
    many.write([lesson("one more lesson about newcomers", 7000)])
    indexed.refresh()
    assert (many.folder / INDEX).stat().st_mtime_ns == made, "what came since is compared one by one"
    newest = many.get([61])[0]
    near = indexed.search(newest.keys[:1].astype(np.float32), 1)
    assert (near.episodes[0, 0], near.positions[0, 0], near.tokens[0, 0]) == (61, 0, newest.tokens[1])


def test_a_stale_or_damaged_index_is_made_anew(many: EpisodicStore) -> None:
    Neighbours(many, flat=100)
    query = many.get([3])[0].keys[4:5].astype(np.float32)
    many.forget([3])
    assert not (many.folder / INDEX).exists()
    after = Neighbours(many, flat=100, probes=64)
    assert 3 not in after.search(query, 50).episodes
    (many.folder / INDEX).write_bytes(b"not an index")
    assert 4 in Neighbours(many, flat=100, probes=64).search(many.get([4])[0].keys[:1].astype(np.float32), 1).episodes
    (many.folder / STAMP).write_text("{")
    Neighbours(many, flat=100)
    assert (many.folder / STAMP).read_text().startswith('{"last"')
