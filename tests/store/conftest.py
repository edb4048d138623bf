"""Lessons made by chance: words, tokens that stand for them, keys of a small width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pragnosia.store.episode import Episode
from pragnosia.store.episodes import EpisodicStore
from pragnosia.store.opening import Header
from pragnosia.store.words import words_of

WIDTH = 8
HEADER = Header(model="model-a", tokenizer="tokens-a", width=WIDTH, limit=1 << 20)


def make_lesson(text: str, seed: int = 0, width: int = WIDTH, **changes: Any) -> Episode:
    """A token a word."""
    chance = np.random.default_rng(seed)
    words = words_of(text)
    count = len(words)
    values: dict[str, Any] = {
        "text": text,
        "tokens": np.array([hash_of(word.text) for word in words], np.int32),
        "starts": np.array([word.start for word in words], np.int32),
        "keys": chance.normal(size=(count - 1, width)).astype(np.float16),
        "surprises": chance.uniform(1, 9, size=count - 1).astype(np.float16),
    }
    return Episode(**(values | changes))


def hash_of(word: str) -> int:
    """The same in every process."""
    return sum(ord(letter) * 31**at for at, letter in enumerate(word)) % 50_000


@pytest.fixture
def lesson() -> Callable[..., Episode]:
    return make_lesson


@pytest.fixture
def header() -> Header:
    return HEADER


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EpisodicStore]:
    with EpisodicStore.open(tmp_path / "episodes", HEADER) as opened:
        yield opened
