"""Pieces: from all over a text, none on both sides."""

from __future__ import annotations

import pytest

from pragnosia.data import Texts
from pragnosia.data.pieces import PIECE, pieces
from pragnosia.errors import DataError


def lines(name: str, count: int) -> str:
    return "".join(f"{name} {number}: the quick brown fox jumps over the lazy dog.\n" for number in range(count))


def test_a_long_document_gives_its_end() -> None:
    document = lines("a", 2000)
    learned, held_out = pieces(Texts([document]))
    assert sorted(learned.texts + held_out.texts) == sorted({*learned.texts, *held_out.texts})
    assert sum(map(len, learned.texts)) + sum(map(len, held_out.texts)) == len(document)
    assert max(map(len, learned.texts)) <= PIECE
    assert all(piece.endswith("\n") for piece in learned.texts)
    first_held_out = min(document.index(piece) for piece in held_out.texts)
    assert first_held_out > max(document.index(piece) for piece in learned.texts)
    assert len(held_out.texts) == pytest.approx(len(learned.texts) / 9, rel=0.2)


def test_the_first_pieces_are_of_all_documents() -> None:
    learned, held_out = pieces(Texts([lines(name, 1000) for name in "abcdefgh"]))
    assert {piece[0] for piece in learned.texts[:60]} == set("abcdefgh")
    assert {piece[0] for piece in held_out.texts} == set("abcdefgh")


def test_short_documents_go_whole() -> None:
    documents = [lines(str(number), 3) for number in range(100)]
    learned, held_out = pieces(Texts(documents))
    assert len(held_out.texts) == 10
    assert sorted(learned.texts + held_out.texts) == sorted(documents)


def test_a_text_of_one_piece_is_too_short() -> None:
    with pytest.raises(DataError, match="less than two pieces"):
        pieces(Texts(["short"]))
