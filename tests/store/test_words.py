"""Words as they are compared, and the lessons of a file."""

from __future__ import annotations

from pragnosia.store.words import paragraphs, words_of


def test_words() -> None:
    assert [word.text for word in words_of("Zorvia's CAPITAL, the old-town; 12 May. l'été 수도는")] == [
        *("zorvia", "capital", "the", "old", "town", "12", "may", "l'été", "수도는"),
    ]
    text = "So is  Plem."
    assert [text[word.start : word.stop] for word in words_of(text)] == ["So", "is", "Plem"]
    assert words_of(" ...") == []


def test_paragraphs() -> None:
    text = "One line that\ngoes on.\nA second lesson.\n\n\nA third\nwithout an end\n\n  \n"
    assert list(paragraphs(text)) == ["One line that\ngoes on.", "A second lesson.", "A third\nwithout an end"]
