from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from pragnosia.data import PackingOptions, Texts, TokenShards, TokenStream, tokenize, train_tokenizer
from pragnosia.data.splitting import by_document, by_tail
from pragnosia.errors import DataError


def words(stream: TokenStream, tokenizer: PreTrainedTokenizerFast, separator: int) -> list[str]:
    """The documents back out of a stream."""
    ids = stream.read(0, stream.tokens)
    ends = np.flatnonzero(ids == separator)
    starts = [0, *(ends[:-1] + 1)]
    return [tokenizer.decode(ids[a:b].tolist()) for a, b in zip(starts, ends, strict=True)]


def test_every_document_lands_once(texts: Texts, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    shards = tokenize(texts, tokenizer, tmp_path, PackingOptions(validation_fraction=0.1))
    train, held = (words(s, tokenizer, shards.separator) for s in (shards.train, shards.validation))
    assert sorted([*train, *held]) == sorted(texts.texts)
    assert shards.split_rule == "document"
    assert 5 < len(held) < 40
    assert train == [text for text in texts.texts if text in set(train)]  # in the order they came


def test_counts(texts: Texts, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    shards = tokenize(texts, tokenizer, tmp_path, PackingOptions(validation_fraction=0.1))
    streams = shards.streams.values()
    assert sum(s.bytes for s in streams) == sum(len(text.encode()) for text in texts.texts)
    assert sum(s.documents for s in streams) == len(texts.texts)
    assert sum(s.tokens for s in streams) == sum(len(tokenizer(text).input_ids) + 1 for text in texts.texts)
    assert len(shards.train) == shards.train.tokens
    # A uniform guess over the 256 bytes costs 8 bits a byte however the text is cut into tokens.
    nats = 8 * math.log(2) * shards.train.bytes_per_token
    assert shards.train.bits_per_byte(nats) == pytest.approx(8)


def test_sixteen_bits_where_they_suffice(texts: Texts, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    shards = tokenize(texts, tokenizer, tmp_path)
    assert {shard.dtype for shard in shards.train.shards} == {"<u2"}
    tokenizer_of_many = _with_tokens(tokenizer, 70_000)
    wide = tokenize(texts, tokenizer_of_many, tmp_path)
    assert {shard.dtype for shard in wide.train.shards} == {"<u4"}
    assert np.array_equal(wide.train.read(0, 500), shards.train.read(0, 500))


def _with_tokens(tokenizer: PreTrainedTokenizerFast, count: int) -> PreTrainedTokenizerFast:
    engine = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = engine["model"]["vocab"]
    engine["model"]["vocab"] |= {f"Ġunused{i}": i for i in range(len(vocabulary), count)}
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(engine)), eos_token="<|endoftext|>")


def test_shard_size_does_not_matter(texts: Texts, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    one = tokenize(texts, tokenizer, tmp_path)
    many = tokenize(texts, tokenizer, tmp_path, PackingOptions(shard_tokens=777))
    assert len(many.train.shards) == -(-many.train.tokens // 777) > 5
    assert np.array_equal(one.train.read(0, one.train.tokens), many.train.read(0, many.train.tokens))
    assert np.array_equal(many.train.read(700, 900), one.train.read(700, 900))
    assert many.train.read(777, 0).size == 0
    with pytest.raises(DataError, match="asked for"):
        many.train.read(many.train.tokens - 1, 2)


def test_padding_and_truncation_of_the_tokenizer_are_left_alone(
    texts: Texts, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    expected = tokenize(texts, tokenizer, tmp_path / "a")
    from copy import deepcopy

    odd = deepcopy(tokenizer)
    odd.backend_tokenizer.enable_truncation(5)
    odd.backend_tokenizer.enable_padding(length=9)
    assert tokenize(texts, odd, tmp_path / "a").digest == expected.digest


def test_a_second_call_finds_the_shards(
    book: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = tokenize(book, tokenizer, cache)
    with monkeypatch.context() as patch:
        patch.setattr("pragnosia.data.packing._write", lambda *_: pytest.fail("tokenized twice"))
        assert tokenize(str(book), tokenizer, cache).folder == first.folder
    book.write_text(book.read_text() + "One more line.\n")
    assert tokenize(book, tokenizer, cache).folder != first.folder
    assert tokenize(book, tokenizer, cache, PackingOptions(validation_fraction=0.1)).folder != first.folder
    assert sum(1 for _ in cache.iterdir()) == 3


def test_a_damaged_cache_is_made_again(book: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    first = tokenize(book, tokenizer, tmp_path)
    (first.folder / "train-00000.bin").write_bytes(b"")
    assert tokenize(book, tokenizer, tmp_path).digest == first.digest


def test_a_single_text_gives_its_tail(book: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    shards = tokenize(book, tokenizer, tmp_path)
    (train,), (held,) = (words(s, tokenizer, shards.separator) for s in (shards.train, shards.validation))
    assert train + held == book.read_text()
    assert held.startswith("Chapter 28")
    assert shards.split_rule == "tail"


def test_few_uneven_documents_give_their_tails(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    long = "".join(f"Line {i} of the long one.\n" for i in range(2000))
    shards = tokenize(Texts([long, "short one. " * 20, "another. " * 20]), tokenizer, tmp_path)
    assert shards.split_rule == "tail"
    assert 0.03 < shards.validation.bytes / shards.train.bytes < 0.08


def test_no_validation(texts: Texts, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    shards = tokenize(texts, tokenizer, tmp_path, PackingOptions(validation_fraction=0))
    assert shards.validation.tokens == 0
    assert shards.train.documents == len(texts.texts)


def test_equal_documents_land_on_one_side() -> None:
    assert all(by_document(f"text {i}", 0.5) == by_document(f"text {i}", 0.5) for i in range(20))
    sides = [bool(by_document(f"text {i}", 0.5)[0]) for i in range(200)]
    assert 70 < sum(sides) < 130


@pytest.mark.parametrize("text", ["", "a", "ab", "word " * 100, "line\n" * 1000, "가나다\n" * 10])
def test_tails_lose_nothing(text: str) -> None:
    train, held = by_tail(text, 0.02)
    assert train + held == text
    assert len(held) <= 0.07 * len(text) + 1


def test_max_tokens(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    many = Texts([f"{i}" for i in range(6000)])
    shards = tokenize(many, tokenizer, tmp_path, PackingOptions(max_tokens=5000))
    whole = tokenize(many, tokenizer, tmp_path)
    assert 5000 <= shards.train.tokens < whole.train.tokens / 2


def test_progress(texts: Texts, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    seen: list[int] = []
    shards = tokenize(texts, tokenizer, tmp_path, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == shards.train.bytes + shards.validation.bytes


def test_bad_sources_leave_nothing(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine text\n" * 300_000 + b"\xff")
    with pytest.raises(DataError, match="offset 3000000"):
        tokenize(tmp_path / "a.txt", tokenizer, tmp_path / "cache")
    with pytest.raises(DataError, match="too little text"):
        tokenize(Texts([]), tokenizer, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    "options", [{"validation_fraction": 0.6}, {"validation_fraction": -0.1}, {"max_tokens": 0}, {"shard_tokens": 0}]
)
def test_impossible_options(options: dict[str, float]) -> None:
    with pytest.raises(DataError, match="expected"):
        PackingOptions(**options)  # type: ignore[arg-type]


def test_a_tokenizer_without_an_end(texts: Texts, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(DataError, match="no end-of-sequence token"):
        tokenize(texts, bare, tmp_path)


def test_opening_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shards in"):
        TokenShards.open(tmp_path)


def test_opening_what_is_damaged(book: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = tokenize(book, tokenizer, tmp_path).folder
    shard, index = folder / "train-00000.bin", folder / "index.json"
    content, record = shard.read_bytes(), index.read_text()
    shard.write_bytes(content[:-10])
    with pytest.raises(DataError, match="cut short"):
        TokenShards.open(folder)
    shard.unlink()
    with pytest.raises(DataError, match="is missing"):
        TokenShards.open(folder)
    shard.write_bytes(content[:-2] + b"\1\1")
    with pytest.raises(DataError, match="is damaged"):
        TokenShards.open(folder).check_content()
    shard.write_bytes(content)
    TokenShards.open(folder, tokenizer).check_content()
    for broken in (record[:50], "[]", '{"format": "other"}', record.replace('"streams"', '"rivers"'), ""):
        index.write_text(broken)
        with pytest.raises(DataError, match=r"index\.json"):
            TokenShards.open(folder)


def test_an_index_does_not_reach_outside_its_folder(
    book: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tokenize(book, tokenizer, tmp_path).folder
    index = folder / "index.json"
    index.write_text(index.read_text().replace("train-00000.bin", "/etc/train-00000.bin"))
    assert TokenShards.open(folder).train.shards[0].path == folder / "train-00000.bin"


def test_another_tokenizer(book: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = tokenize(book, tokenizer, tmp_path / "cache").folder
    train_tokenizer(book, 300, tmp_path / "other")
    from pragnosia.data import load_tokenizer

    with pytest.raises(DataError, match="made with tokenizer"):
        TokenShards.open(folder, load_tokenizer(tmp_path / "other"))
