"""Pieces of a text from all over it: some to learn from, others held out, in an order whose every beginning is fair.

The first tokens of many texts are one book's; what is found out on them holds for that book.
"""

from __future__ import annotations

import random

from pragnosia.data.sources import Source, Texts
from pragnosia.errors import DataError

PIECE = 2048
"""Characters: some hundred words, cut at a line end where one is near."""
MOST = 1 << 26
"""Characters that are read of a text at most."""
HELD_OUT = 10
"""One piece in so many: the end of every long document, and of short ones every tenth."""


def pieces(text: Source, seed: int = 0) -> tuple[Texts, Texts]:
    """Pieces to learn from, and held out. Raises DataError for a text of fewer than two."""
    learned: list[str] = []
    held_out: list[str] = []
    left = MOST
    for document in text.documents():
        own = _cut(document[:left])
        left -= len(document)
        if len(own) >= HELD_OUT:
            kept = len(own) - len(own) // HELD_OUT
            learned += own[:kept]
            held_out += own[kept:]
        elif (len(learned) + len(held_out)) % HELD_OUT == HELD_OUT - 1:
            held_out += own
        else:
            learned += own
        if left <= 0:
            break
    if not held_out and len(learned) > 1:
        held_out = [learned.pop()]
    if not held_out:
        raise DataError(f"{text.name} holds less than two pieces of {PIECE} characters; give a longer text")
    chance = random.Random(seed)
    chance.shuffle(learned)
    chance.shuffle(held_out)
    return Texts(learned, text.name), Texts(held_out, f"{text.name}, held out")


def _cut(document: str) -> list[str]:
    found, start = [], 0
    while start < len(document):
        end = start + PIECE
        line = document.rfind("\n", start + PIECE // 2, end)
        end = line + 1 if line > 0 and end < len(document) else end
        found.append(document[start:end])
        start = end
    return [piece for piece in found if piece.strip()]
