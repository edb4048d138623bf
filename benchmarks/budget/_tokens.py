"""The tokens every engine is given: random ones, so that no engine profits from what it says itself."""

from __future__ import annotations

import random

PROMPT, VOCABULARY = 32, 32_000


def tokens(count: int) -> list[int]:
    """The same ones each time."""
    return random.Random(7).choices(range(2, VOCABULARY), k=count)
