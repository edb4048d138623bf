"""A text finds the lessons it was cut into, and no others."""

from __future__ import annotations

from collections.abc import Callable

from pragnosia.store.episode import Episode
from pragnosia.store.episodes import EpisodicStore
from pragnosia.store.said import lessons_of

Make = Callable[..., Episode]
PARTS = ("One house is red.", "Two houses are blue.", "One house is red. So they say.")


def test_a_text_that_was_cut(store: EpisodicStore, lesson: Make) -> None:
    one, two, other = store.write([lesson(text) for text in PARTS]).ids
    assert lessons_of(store, PARTS[0]) == [one]
    assert lessons_of(store, f" {PARTS[0]}\n{PARTS[1]} ") == [one, two]
    assert lessons_of(store, f"{PARTS[1]} {PARTS[2]}") == [two, other], "the longest that fits"
    assert lessons_of(store, f"{PARTS[0]} {PARTS[0]}") == [one], "said twice, kept once"


def test_a_text_of_which_a_part_is_missing(store: EpisodicStore, lesson: Make) -> None:
    store.write([lesson(text) for text in PARTS[:2]])
    for text in (f"{PARTS[0]} Three houses are green.", f"Well. {PARTS[0]}", "One house", "", " "):
        assert lessons_of(store, text) == []
