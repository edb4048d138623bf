"""The short way in: pieces that are whole characters, stop texts cut exactly, the same text streamed and at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pragnosia import Pragnosia
from pragnosia.errors import PromptError
from pragnosia.inference.chat import Conversation
from pragnosia.inference.decode import Trace
from pragnosia.model.setting import Setting

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# What a byte tokenizer tears apart: Korean, composed emoji, combining marks, and texts of the tokenizer's own merges
texts = st.text(
    st.sampled_from([*"abthe U:\nser. ", *"안녕하세요", "é", "\u0301", "👩", "\u200d", "👧", "🎉", "𝕏"]), max_size=30
)


def pieces(speaker: Pragnosia, ids: list[int], *stop: str) -> list[str]:
    return list(speaker.pieces(iter(ids), stop))


@given(texts)
def test_pieces_add_up_to_the_text(speaker: Pragnosia, text: str) -> None:
    ids = speaker.tokenizer(text)["input_ids"]
    told = pieces(speaker, ids)
    assert "".join(told) == text
    assert REPLACEMENT not in "".join(told)
    assert all(told), "no empty pieces"


@given(texts, texts.filter(bool))
def test_a_stop_text_is_cut_exactly(speaker: Pragnosia, text: str, stop: str) -> None:
    for whole in (text, text + stop, text + stop + text):
        told = pieces(speaker, speaker.tokenizer(whole)["input_ids"], stop)
        assert "".join(told) == whole.partition(stop)[0]


@given(texts, st.lists(texts.filter(bool), min_size=2, max_size=4))
def test_of_several_stop_texts_none_is_told(speaker: Pragnosia, text: str, stops: list[str]) -> None:
    told = "".join(pieces(speaker, speaker.tokenizer(text)["input_ids"], *stops))
    assert text.startswith(told)
    assert not any(stop in told for stop in stops)
    assert told == text or any(text[len(told) :].startswith(stop) for stop in stops)


@given(st.lists(st.integers(0, 255), max_size=40))
def test_broken_characters_are_never_told_in_halves(speaker: Pragnosia, ids: list[int]) -> None:
    """Any bytes whatever: what is told is what the tokenizer decodes, but for an unfinished end."""
    told = "".join(pieces(speaker, ids))
    whole = str(speaker.tokenizer.decode(ids, skip_special_tokens=True))
    assert whole.startswith(told)
    assert not whole[len(told) :].strip(REPLACEMENT)


@pytest.mark.parametrize("text", ["한국어", "🎉", "a한"])
def test_an_unfinished_character_waits(speaker: Pragnosia, text: str) -> None:
    ids = speaker.tokenizer(text)["input_ids"]
    for end in range(len(ids)):
        told = "".join(pieces(speaker, ids[:end]))
        assert text.startswith(told)
    assert "".join(pieces(speaker, ids[:-1])) == text[:-1]


def test_pieces_come_as_early_as_they_can(speaker: Pragnosia) -> None:
    """What cannot become a stop text is told at once; what can is held back."""
    tokens = speaker.tokenizer

    def streamed(text: str, stop: str) -> list[tuple[int, str]]:
        taken = 0

        def counting() -> Iterator[int]:
            nonlocal taken
            for token in tokens(text)["input_ids"]:
                taken += 1
                yield token

        return [(taken, piece) for piece in speaker.pieces(counting(), (stop,))]

    assert streamed("abcd", "xyz") == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    assert streamed("axyb", "xyz") == [(1, "a"), (4, "xyb")]
    assert streamed("axxyz", "xyz") == [(1, "a"), (3, "x")]


def test_special_tokens_are_not_told(speaker: Pragnosia) -> None:
    ids = speaker.tokenizer("a<user>b<end>c")["input_ids"]
    assert len(ids) == 5
    assert "".join(pieces(speaker, ids)) == "abc"


def test_of_two_stop_texts_in_one_token_the_first_counts(speaker: Pragnosia) -> None:
    ids = speaker.tokenizer("aUser")["input_ids"]
    assert len(ids) == 2
    assert pieces(speaker, ids, "er", "Us") == pieces(speaker, ids, "Us", "er") == ["a"]


# -- the model's own words


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 7}, {"setting": Setting(awake=0.5)}], ids=str)
def test_streamed_as_generated(speaker: Pragnosia, options: dict[str, Any]) -> None:
    streamed = list(speaker.stream("the user", max_new_tokens=30, **options))
    assert "".join(streamed) == speaker.generate("the user", max_new_tokens=30, **options)
    assert len(streamed) > 3
    ids = speaker.encode("the user")
    tokens = speaker.generate_tokens(ids, max_new_tokens=30, stop_tokens=speaker.stop_tokens, **options)
    assert "".join(speaker.pieces(iter(tokens), after=ids)) == "".join(streamed)


def test_temperature_zero_is_greedy_and_the_default(speaker: Pragnosia) -> None:
    greedy = speaker.generate_tokens([1, 2, 3], max_new_tokens=20)
    assert greedy == speaker.generate_tokens([1, 2, 3], max_new_tokens=20, temperature=0.0, seed=9)
    ids = torch.tensor([[1, 2, 3]])
    model: Any = speaker.model
    expected = model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert greedy == expected[0, 3:].tolist()


def test_seeds_reproduce(speaker: Pragnosia) -> None:
    def drawn(seed: int) -> str:
        return speaker.generate("the", max_new_tokens=20, temperature=1.0, top_k=50, seed=seed)

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)}) == 4


def test_a_stop_text_of_the_models_own(speaker: Pragnosia) -> None:
    whole = speaker.generate("the user", max_new_tokens=30)
    for start in (0, 3, 7):
        stop = whole[start : start + 3]
        assert speaker.generate("the user", max_new_tokens=30, stop=(stop,)) == whole.partition(stop)[0]
        assert speaker.generate("the user", max_new_tokens=30, stop=stop) == whole.partition(stop)[0]


def test_reading_stops_where_the_stop_text_is(speaker: Pragnosia) -> None:
    whole, trace = speaker.generate("the user", max_new_tokens=30), Trace()
    assert len(whole) > 10
    speaker.generate("the user", max_new_tokens=30, stop=(whole[2:4],), trace=trace)
    assert len(trace.num_tokens) < 10, "no token is made after it"


def test_the_end_token_ends(speaker: Pragnosia, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = speaker.encode("the user")
    tokens = speaker.generate_tokens(ids, max_new_tokens=20)
    end = next(token for index, token in enumerate(tokens) if index > 2 and token not in tokens[:index])
    for named in (end, [5000, end]):
        monkeypatch.setattr(speaker.model.generation_config, "eos_token_id", named)
        said = "".join(speaker.pieces(iter(tokens[: tokens.index(end)]), after=ids))
        assert speaker.generate("the user", max_new_tokens=20) == said
    assert end in speaker.stop_tokens
    assert speaker.tokenizer.eos_token_id in speaker.stop_tokens


def test_ids_in_and_out(speaker: Pragnosia) -> None:
    expected = speaker.generate_tokens([5, 6, 7], max_new_tokens=6)
    assert all(type(token) is int for token in expected)
    assert len(expected) == 6
    for given_ids in ((5, 6, 7), torch.tensor([5, 6, 7]), torch.tensor([[5, 6, 7]])):
        assert speaker.generate_tokens(given_ids, max_new_tokens=6) == expected
    assert (
        speaker.generate_tokens([5, 6, 7], max_new_tokens=6, stop_tokens=[expected[3]])
        == (expected[: expected.index(expected[3])])
    )
    with pytest.raises(PromptError, match=r"the prompt has shape \(2, 3\); give one text at a time"):
        speaker.generate_tokens(torch.ones(2, 3, dtype=torch.long), max_new_tokens=6)


def test_what_wakes_is_traced(speaker: Pragnosia) -> None:
    awake = {}
    for share in (1.0, 0.5, 0.25):
        trace = Trace()
        speaker.generate("the user", max_new_tokens=5, setting=Setting(awake=share), trace=trace)
        awake[share] = sum(int((r.units >= 0).sum()) for step, _ in trace.steps() for r in step if r is not None)
    assert awake[1.0] == 2 * awake[0.5] == 4 * awake[0.25] > 0


# -- prompts that cannot be


def test_an_empty_prompt_begins_a_text(speaker: Pragnosia) -> None:
    assert speaker.encode("") == [speaker.tokenizer.eos_token_id]
    assert speaker.generate("", max_new_tokens=3)


def test_an_empty_prompt_and_nothing_to_begin_with(speaker: Pragnosia) -> None:
    endless = PreTrainedTokenizerFast(tokenizer_object=speaker.tokenizer.backend_tokenizer)
    with pytest.raises(PromptError, match="the prompt is empty and the tokenizer has no token to begin with"):
        Pragnosia(speaker.model, endless).generate("", max_new_tokens=3)
    with pytest.raises(PromptError, match="there is no token to continue"):
        speaker.generate_tokens([], max_new_tokens=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 2.0}, "top_p is 2.0"),
        ({"min_p": 2.0}, "min_p is 2.0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0"),
        ({"stop": ("",)}, "stop is"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": -7}, "max_new_tokens is -7"),
        ({"max_new_tokens": "9"}, "max_new_tokens is 9"),
        ({"max_new_tokens": None}, "max_new_tokens is None"),
    ],
    ids=str,
)
def test_options_that_cannot_be(speaker: Pragnosia, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        speaker.generate("x", **options)


def test_mistakes_are_told_before_the_first_piece(speaker: Pragnosia) -> None:
    with pytest.raises(PromptError):
        speaker.stream("x", temperature=-1.0)
    with pytest.raises(
        PromptError, match="the prompt has 500 tokens and needs room for one more; the model's context holds 192"
    ):
        speaker.stream("x" * 500)
    with pytest.raises(PromptError, match=r"unknown option 'temprature'. Did you mean 'temperature'"):
        speaker.stream("x", temprature=1.0)
    with pytest.raises(PromptError, match=r"unknown option 'max_tokens'. Did you mean 'max_new_tokens'"):
        speaker.generate_tokens([1], max_tokens=3)


@pytest.mark.parametrize("text", [None, 3, ["a", "b"], b"bytes"])
def test_what_is_no_text(speaker: Pragnosia, text: Any) -> None:
    with pytest.raises(PromptError, match=r"the prompt is .*; give one text, or ids to generate_tokens"):
        speaker.generate(text)


def test_what_no_tokenizer_takes(speaker: Pragnosia) -> None:
    for talk in (speaker.generate, Conversation(speaker).say):
        with pytest.raises(PromptError, match="the prompt is not UTF-8 text at character 2"):
            talk("ab\udcff")
    with pytest.raises(PromptError, match="not UTF-8"):
        Conversation(speaker, system="\ud800")


@pytest.mark.parametrize("ids", [None, 5, "abc", [1.5], [True], ["a"], torch.tensor(5)])
def test_what_are_no_tokens(speaker: Pragnosia, ids: Any) -> None:
    with pytest.raises(PromptError, match="the prompt"):
        speaker.generate_tokens(ids)
    with pytest.raises(PromptError, match="stop_tokens") as caught:
        speaker.generate_tokens([1, 2], stop_tokens=ids)
    assert "\n" not in str(caught.value)


def test_the_context_ends_the_text(speaker: Pragnosia) -> None:
    assert len(speaker.generate_tokens([1] * 190, max_new_tokens=50)) == 2


# -- other tokenizers


def test_a_tokenizer_that_drops_the_first_space(speaker: Pragnosia) -> None:
    """Llama's kind: a word's space is part of it and is lost at the beginning of a text, but not in the middle."""
    vocabulary = {piece: index for index, piece in enumerate(["<s>", "▁", *"abcd", "▁a", "▁b"])}
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁", "b")]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens(["<s>"])
    llama = Pragnosia(speaker.model, PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>"))
    ids = llama.encode("ab ac bd")
    for cut in range(1, len(ids)):
        begun = "".join(llama.pieces(iter(ids[:cut])))
        assert begun + "".join(llama.pieces(iter(ids[cut:]), after=ids[:cut])) == "ab ac bd"
    assert "".join(llama.pieces(iter(ids), after=[0])) == "ab ac bd"
    assert llama.encode("") == [0]
