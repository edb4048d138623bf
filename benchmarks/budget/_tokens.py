"""The tokens every engine is given: random ones, or a text; so that no engine profits from what it says itself."""

from __future__ import annotations

import json
import random
from pathlib import Path

PROMPT, VOCABULARY = 32, 32_000
HELD_OUT = "held_out.json"
"""Beside a model that learned: the text that it reads (_trained.py)."""


def tokens(count: int, folder: str | Path = "") -> list[int]:
    """The same ones each time."""
    text = Path(folder) / HELD_OUT
    if text.is_file():
        found: list[int] = json.loads(text.read_text())[:count]
        return found
    return random.Random(7).choices(range(2, VOCABULARY), k=count)
