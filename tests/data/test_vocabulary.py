"""The digest of a vocabulary: the same through every rewriting of the file, another for another tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pragnosia.data import Texts, TokenizerReport, train_tokenizer, vocabulary_digest


def write(folder: Path, **model: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}), "utf-8")
    return folder


def test_saved_again_it_is_the_same(report: TokenizerReport, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(report.out)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(tmp_path)
    assert vocabulary_digest(tmp_path) == vocabulary_digest(report.out) is not None


def test_another_of_the_same_size_is_another(tmp_path: Path) -> None:
    texts = {"one": "zebra quartz jinx vow waltz nymph. ", "other": "brick quiz jumpy dwarf veldt. "}
    made = [train_tokenizer(Texts([text * 400], name), 270, tmp_path / name) for name, text in texts.items()]
    assert [report.vocab_size for report in made] == [270, 270]
    assert len({vocabulary_digest(report.out) for report in made} - {None}) == 2


def test_the_files_ways_of_writing_do_not_count(tmp_path: Path) -> None:
    digests = {
        vocabulary_digest(write(tmp_path, vocab=vocab, merges=merges))
        for vocab in ({"a": 0, "b": 1, "ab": 2}, {"ab": 2, "b": 1, "a": 0})
        for merges in (["a b"], [["a", "b"]])
    }
    assert len(digests) == 1
    assert digests.isdisjoint({
        vocabulary_digest(write(tmp_path, vocab={"a": 1, "b": 0, "ab": 2}, merges=["a b"])),
        vocabulary_digest(write(tmp_path, vocab={"a": 0, "b": 1, "ab": 2}, merges=["b a"])),
        vocabulary_digest(write(tmp_path, vocab={"a": 0, "b": 1, "ab": 2})),
    })  # fmt: skip


def test_pieces_with_scores(tmp_path: Path) -> None:
    first = vocabulary_digest(write(tmp_path, vocab=[["a", 0.0], ["b", -1.5]]))
    assert first is not None
    assert first != vocabulary_digest(write(tmp_path, vocab=[["b", 0.0], ["a", -1.5]]))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": []}', '{"model": {"vocab": {"a": 1, "b": "x"}}}'])
def test_what_cannot_be_read_has_none(text: str, tmp_path: Path) -> None:
    assert vocabulary_digest(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text(text, "utf-8")
    assert vocabulary_digest(tmp_path) is None
