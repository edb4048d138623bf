"""Tokenizers tell differently where a token begins: with the white space before it, or behind that."""

from __future__ import annotations

import numpy as np
import pytest

from pragnosia.inference.lessons import Lesson
from pragnosia.store.episode import Episode

TEXT = "The  capital of Zorvia is Plem."
PIECES = [
    *[("The", 0), ("capital", 5), ("of", 13), ("Zor", 16), ("via", 19), ("is", 23)],
    *[("Pl", 26), ("em", 28), (".", 30)],
]


@pytest.mark.parametrize("trimmed", [True, False])
def test_a_words_surprise_is_that_of_its_tokens(trimmed: bool) -> None:
    starts = [at if trimmed else len(TEXT[:at].rstrip()) for _, at in PIECES]
    count = len(starts)
    lesson = Lesson.of(
        Episode(
            text=TEXT,
            tokens=np.arange(count, dtype=np.int32),
            starts=np.array(starts, np.int32),
            keys=np.ones((count - 1, 4), np.float16),
            surprises=np.arange(1, count, dtype=np.float16),
        )
    )
    assert [word.text for word in lesson.words] == ["the", "capital", "of", "zorvia", "is", "plem"]
    assert lesson.surprises.tolist() == [3, 1, 2, 3 + 4, 5, 6 + 7]
    assert lesson.begins.tolist() == [1, 2, 3, -1, 4, 5, -1, -1]
    assert lesson.before.tolist() == [1, 2, 3, 3, 4, 5, 5, 6]
