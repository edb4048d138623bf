"""Held-out text: which part of each document is kept for validation, decided by its content alone.

by document   a document goes whole, with probability = fraction of its hash; a very long one gives its end
by tail       every document gives its end: for corpora of so few documents that whole ones are no fair sample
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeAlias

from pragnosia.errors import DataError

# Longer documents give their end instead of going whole.
LONG_CHARS = 1024**2
_MIN_TAIL_FRACTION = 0.05
_SEARCH_CHARS = 2048

Split: TypeAlias = Callable[[str, float], tuple[str, str]]


def check_fraction(fraction: float) -> None:
    """Raise DataError for a validation fraction outside [0, 0.5]."""
    if not 0 <= fraction <= 0.5:
        raise DataError(f"validation_fraction is {fraction}, expected 0 to 0.5")


def by_document(text: str, fraction: float, long_chars: int = LONG_CHARS) -> tuple[str, str]:
    """(train, validation) of one document; equal documents always land on the same side."""
    if len(text) > long_chars:
        return _cut(text, fraction)
    draw = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") / 2**64
    return ("", text) if draw < fraction else (text, "")


def by_tail(text: str, fraction: float) -> tuple[str, str]:
    """(train, validation) of one document: its end, at least 5 % of it, is validation."""
    return _cut(text, max(fraction, _MIN_TAIL_FRACTION) if fraction else 0.0)


def fair(train_bytes: int, validation_bytes: int, fraction: float) -> bool:
    """Whether splitting by document gave about the fraction that was asked for."""
    share = validation_bytes / max(1, train_bytes + validation_bytes)
    return fraction / 8 <= share <= min(0.5, 4 * fraction)


def _cut(text: str, fraction: float) -> tuple[str, str]:
    """Cut near the given fraction from the end, behind a line end where there is one close by."""
    wanted = len(text) - round(len(text) * fraction)
    reach = min(_SEARCH_CHARS, (len(text) - wanted) // 4)
    line_end = text.rfind("\n", wanted - reach, wanted + reach) + 1
    at = line_end or wanted
    return text[:at], text[at:]
