"""Words: what two texts have in common, whatever their grammar. Lower case, without a possessive ending."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_PARAGRAPH = re.compile(r"\n\s*\n|(?<=[.!?:;。！？])\n")
_POSSESSIVE = re.compile(r"['’]s?$")


class Word(NamedTuple):
    """A word and where it stands, in characters."""

    text: str
    start: int
    stop: int


def words_of(text: str) -> list[Word]:
    """The words of a text, in order."""
    return [Word(plain(found[0]), found.start(), found.end()) for found in _WORD.finditer(text)]


def paragraphs(text: str) -> Iterator[str]:
    """The lessons of a file: parted by empty lines, and by line ends behind a sentence."""
    for part in _PARAGRAPH.split(text):
        if part.strip():
            yield part.strip()


def plain(word: str) -> str:
    """A word as it is compared: `Zorvia's` is `zorvia`."""
    return _POSSESSIVE.sub("", word.casefold())
