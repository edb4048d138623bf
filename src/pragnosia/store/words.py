"""Words: what two texts have in common, whatever their grammar. Lower case, without a possessive ending."""

from __future__ import annotations

import re
from typing import NamedTuple

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_POSSESSIVE = re.compile(r"['’]s?$|['’]s$")


class Word(NamedTuple):
    """A word and where it stands, in characters."""

    text: str
    start: int
    stop: int


def words_of(text: str) -> list[Word]:
    """The words of a text, in order."""
    return [Word(plain(found[0]), found.start(), found.end()) for found in _WORD.finditer(text)]


def plain(word: str) -> str:
    """A word as it is compared: `Zorvia's` is `zorvia`."""
    return _POSSESSIVE.sub("", word.casefold())
