from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from pragnosia.errors import DataError
from pragnosia.measure.passages import Passages, windows

sizes = st.integers(1, 30)


MakeTokenizer = Callable[..., PreTrainedTokenizerFast]


@given(num_inputs=st.integers(0, 100), context=sizes, data=st.data())
def test_each_token_is_scored_once_with_enough_before_it(num_inputs: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    scored = []
    for start, stop, num_scored in windows(num_inputs, context, stride):
        assert 0 < num_scored <= stop - start <= context
        for token in range(stop - num_scored, stop):
            scored.append(token)
            assert token - start >= min(token, context - stride)
    assert scored == list(range(num_inputs))


@given(shorter=st.integers(1, 60), longer=st.integers(1, 60), context=sizes, data=st.data())
def test_what_comes_after_a_token_does_not_change_what_is_before_it(
    shorter: int, longer: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))

    def first_read(num_inputs: int) -> list[int]:
        found = windows(num_inputs, context, stride)
        return [start for start, _, num_scored in found for _ in range(num_scored)]

    n = min(shorter, longer)
    assert first_read(shorter)[:n] == first_read(longer)[:n]


def test_a_passage_begins_behind_the_begin_token(make_byte_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_byte_tokenizer(bos_token="<s>", eos_token="</s>")
    (passage,) = Passages(tokenizer, 258).of(["안녕 a\nb\n"])
    assert passage.tokens[0] == tokenizer.bos_token_id
    assert tokenizer.decode(passage.tokens[1:]) == "안녕 a\nb\n"
    assert (passage.num_bytes, passage.num_words) == (len("안녕 a\nb\n".encode()), 5)


def test_or_the_end_token(make_byte_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_byte_tokenizer(eos_token="</s>")
    (passage,) = Passages(tokenizer, 257).of(["ab"])
    assert passage.tokens[0] == tokenizer.eos_token_id


def test_without_either_the_first_characters_do_not_count(make_byte_tokenizer: MakeTokenizer) -> None:
    first, second = Passages(make_byte_tokenizer(), 256).of(["abc", "안c"])
    assert (len(first.tokens), first.num_bytes) == (3, 2)
    assert (len(second.tokens), second.num_bytes) == (4, 1)


@given(texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1),
       max_bytes=st.integers(4, 50))  # fmt: skip
def test_max_bytes_cuts_between_characters(
    make_byte_tokenizer: MakeTokenizer, texts: list[str], max_bytes: int
) -> None:
    tokenizer = make_byte_tokenizer(eos_token="</s>")
    found = list(Passages(tokenizer, 257).of(texts, max_bytes))
    total = len("".join(texts).encode())
    read = b"".join(tokenizer.decode(passage.tokens[1:]).encode() for passage in found)
    assert sum(passage.num_bytes for passage in found) == len(read)
    assert "".join(texts).encode().startswith(read)
    assert min(total, max_bytes) - 3 <= len(read) <= max_bytes


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "there is no text"),
        (["", ""], "there is no text"),
        ("a path", "one string"),
        (["fine", "a\0b"], "NUL character at 1"),
        (["a\ud800b"], "lone surrogate at character 1"),
    ],
)
def test_what_is_no_text_is_refused(make_byte_tokenizer: MakeTokenizer, documents: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(Passages(make_byte_tokenizer(eos_token="</s>"), 257).of(documents))


def test_a_tokenizer_of_another_model_is_refused(make_byte_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(DataError, match="257 ids, the model's vocabulary has 100"):
        Passages(make_byte_tokenizer(eos_token="</s>"), 100)
