from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from pragnosia.data import DataSpec, Joined, Mixture, PackingOptions, Texts, build_corpus
from pragnosia.errors import DataError


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    for name in ("a", "b@2x.dir"):
        (tmp_path / name).write_text(name)
    return str(tmp_path / "a"), str(tmp_path / "b@2x.dir")


def test_without_weights_it_is_one_corpus(pair: tuple[str, str]) -> None:
    mixture = Mixture.parse(pair)
    assert mixture.weights == (1.0,)
    assert isinstance(mixture.sources[0], Joined)
    assert list(mixture.documents()) == ["a", "b@2x.dir"]
    assert Mixture.parse(pair[0]).weights == (1.0,)


def test_weights_sum_to_one(pair: tuple[str, str]) -> None:
    a, b = pair
    for data in ([f"{a}@3", f"{b}@1"], {a: 0.75, b: 0.25}):
        mixture = Mixture.parse(data)
        assert mixture.weights == (0.75, 0.25)
        assert [source.name for source in mixture.sources] == [a, b]
    assert Mixture.parse(f"{a}@7").weights == (1.0,)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([], "no data"),
        ({}, "no data"),
        (["default@0.5", "default"], "has no weight"),
        (["default@0"], "is 0.0, expected a positive number"),
        (["default@-1"], "expected a positive number"),
        (["default@nan"], "expected a positive number"),
        ({"default": "much"}, "expected a positive number"),
        ({"default": True}, "expected a positive number"),
        (["nowhere@0.5"], "no such file or folder"),
    ],
)
def test_bad_mixtures(data: DataSpec, match: str) -> None:
    with pytest.raises(DataError, match=match):
        Mixture.parse(data)


def test_what_is_no_text_is_found_at_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a story")
    Mixture.parse([tmp_path, "default"]).check()
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe no text")
    with pytest.raises(DataError, match=r"b\.txt is not UTF-8 text"):
        Mixture.parse(tmp_path).check()
    (tmp_path / "b.txt").write_bytes(b"no\0 text")
    with pytest.raises(DataError, match=r"b\.txt is not text: NUL byte at offset 2"):
        Mixture.parse([tmp_path / "a.txt", tmp_path]).check()
    (tmp_path / "c.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"c\.txt is empty: it holds no text"):
        Mixture.parse([f"{tmp_path / 'a.txt'}@1", f"{tmp_path / 'c.txt'}@1"]).check()
    with pytest.raises(DataError, match="nothing is empty: it holds no text"):
        Mixture((Texts([], "nothing"),), (1.0,)).check()


def test_parts_are_cached_apart(texts: Texts, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    other = Texts(texts.texts[:60])
    seen: list[int] = []
    one = build_corpus(Mixture((texts, other), (0.5, 0.5)), tokenizer, tmp_path, progress=seen.append)
    two = build_corpus(Mixture((texts, other), (0.9, 0.1)), tokenizer, tmp_path)
    assert [part.folder for part in one.parts] == [part.folder for part in two.parts]
    assert seen[-1] == sum(stream.bytes for part in one.parts for stream in part.streams.values())
    assert one.train_tokens == sum(part.train.tokens for part in one.parts)
    assert one.validation_bytes_per_token > 1


def test_max_tokens_by_weight(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    many = Texts([f"{i}" for i in range(20_000)])
    mixture = Mixture((many, many), (0.8, 0.2))
    corpus = build_corpus(mixture, tokenizer, tmp_path, PackingOptions(max_tokens=50_000))
    first, second = (part.train.tokens for part in corpus.parts)
    assert first >= 40_000
    assert 10_000 <= second < first
