from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pragnosia.data import (
    Texts,
    TokenizerReport,
    bytes_per_token,
    check_vocabulary,
    fingerprint,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
    vocabulary_size,
)
from pragnosia.data.tokenizer_training import MIN_VOCAB_SIZE, SPECIAL_TOKENS, balanced
from pragnosia.errors import DataError


def test_report(report: TokenizerReport, tokenizer: PreTrainedTokenizerFast) -> None:
    assert report.vocab_size == vocabulary_size(tokenizer) <= report.requested_vocab_size == 400
    (stories,) = report.measurements
    assert stories.name == "stories"
    assert stories.held_out
    assert 2 < stories.bytes_per_token == report.bytes_per_token < 12
    assert json.loads(json.dumps(report.to_dict()))["measurements"][0]["tokens"] == stories.tokens


def test_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (0, 0, 3)
    assert tokenizer("a<|user|>b").input_ids.count(1) == 1
    assert tokenizer.decode([1, *tokenizer("word").input_ids, 0], skip_special_tokens=True) == "word"


def test_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V")]
    messages = [{"role": role, "content": content} for role, content in turns]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>S\n\nU<|assistant|>A<|endoftext|><|user|>V<|assistant|>"
    assert tokenizer.apply_chat_template(messages[1:3], tokenize=False) == "<|user|>U<|assistant|>A<|endoftext|>"


def test_every_text_comes_back(tokenizer: PreTrainedTokenizerFast) -> None:
    @given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
    def round_trip(text: str) -> None:
        import unicodedata

        assert tokenizer.decode(tokenizer(text).input_ids) == unicodedata.normalize("NFC", text)

    round_trip()


def test_decomposed_korean_is_composed(tokenizer: PreTrainedTokenizerFast) -> None:
    import unicodedata

    assert tokenizer(unicodedata.normalize("NFD", "다람쥐")).input_ids == tokenizer("다람쥐").input_ids


def test_training_is_deterministic(texts: Texts, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    train_tokenizer([texts], 400, tmp_path / "again")
    assert fingerprint(load_tokenizer(tmp_path / "again")) == fingerprint(tokenizer)


def test_transformers_reads_it(report: TokenizerReport, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    text = "The quick 갈색 여우"
    assert AutoTokenizer.from_pretrained(report.out)(text).input_ids == tokenizer(text).input_ids
    save_tokenizer(tokenizer, tmp_path / "model")
    assert fingerprint(load_tokenizer(tmp_path / "model")) == fingerprint(tokenizer)


def test_files_are_measured_one_by_one(tmp_path: Path) -> None:
    english, korean = tmp_path / "en.txt", tmp_path / "ko.txt"
    english.write_text("the cat sat on the mat and saw the other cat\n" * 200)
    korean.write_text("고양이가 매트 위에 앉아 다른 고양이를 보았다\n" * 200, encoding="utf-8")
    report = train_tokenizer([str(english), korean], 330, tmp_path / "out")
    assert [m.name for m in report.measurements] == [str(english), str(korean)]
    assert all(m.bytes_per_token > 1.5 for m in report.measurements)
    assert not any(m.held_out for m in report.measurements)  # one short document each: nothing to spare, and it says so


def test_a_text_too_poor_for_the_vocabulary(tmp_path: Path) -> None:
    report = train_tokenizer(Texts(["ab ab ab"]), 5000, tmp_path / "out")
    assert report.vocab_size < 300
    assert report.requested_vocab_size == 5000


@pytest.mark.parametrize("size", [-1, 0, 256, MIN_VOCAB_SIZE - 1])
def test_impossible_sizes(size: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"vocab_size is {size}, expected at least 260"):
        train_tokenizer(Texts(["text"]), size, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bytes_alone_are_a_vocabulary(tmp_path: Path) -> None:
    train_tokenizer(Texts(["text and more text"]), MIN_VOCAB_SIZE, tmp_path / "out")
    assert bytes_per_token(load_tokenizer(tmp_path / "out"), ["가나다", "abc"]) == 1.0


def test_a_bad_source_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\n\0")
    with pytest.raises(DataError, match="NUL byte at offset 5"):
        train_tokenizer(tmp_path / "a.txt", 300, tmp_path / "out")
    with pytest.raises(DataError, match="no files"):
        train_tokenizer([], 300, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_max_bytes_bounds_every_source(tmp_path: Path) -> None:
    texts = Texts(["word and word again " * 50] * 100)
    report = train_tokenizer([texts, texts], 300, tmp_path / "out", max_bytes=10_000)
    assert 10_000 <= report.trained_bytes < 13_000


@pytest.mark.parametrize(
    ("temperature", "max_bytes", "wanted"),
    [
        (1, 10**9, [900, 100]),
        (1, 100, [90, 10]),
        (2, 10**9, [300, 100]),  # 3 : 1, and no more than the small one has
        (2, 40, [30, 10]),
        (math.inf, 10**9, [100, 100]),
    ],
)
def test_a_temperature_makes_shares_alike(temperature: float, max_bytes: int, wanted: list[int]) -> None:
    assert balanced([900, 100], temperature, max_bytes) == pytest.approx(wanted, abs=1)


@pytest.mark.parametrize("temperature", [0.5, 0, -1, math.nan])
def test_impossible_temperatures(temperature: float, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"temperature is .*, expected 1"):
        train_tokenizer(Texts(["some text"]), 300, tmp_path / "out", temperature=temperature)


def test_what_is_sampled_comes_from_the_whole_source(tmp_path: Path) -> None:
    long = Texts([f"document {chr(97 + i // 20)} " * 40 for i in range(400)])  # one letter to twenty documents
    short = Texts(["가나다라 마바사 " * 40] * 20)
    report = train_tokenizer([long, short], 400, tmp_path / "out", temperature=math.inf)
    sizes = [sum(len(text.encode()) for text in source.texts) for source in (long, short)]
    assert report.trained_bytes == pytest.approx(2 * min(sizes), rel=0.15)
    words = load_tokenizer(tmp_path / "out").get_vocab()
    assert {"Ġa", "Ġt"} <= words.keys(), "the first and the last letter were both seen"


def test_korean_gets_its_share_beside_much_english(tmp_path: Path) -> None:
    chance = random.Random(0)
    syllables = {"english": ["ba", "con", "di", "gra", "lo", "men", "tu", "sh"], "korean": list("가나다라마바사아")}
    words = {name: ["".join(chance.choices(each, k=3)) for _ in range(80)] for name, each in syllables.items()}
    english, korean = (
        Texts([" ".join(chance.choices(words[name], k=20)) for _ in range(number)])
        for name, number in (("english", 1500), ("korean", 50))
    )

    def tokens(temperature: float) -> int:
        folder = tmp_path / str(temperature)
        train_tokenizer([english, korean], 340, folder, temperature=temperature)
        return len(load_tokenizer(folder)(korean.texts[7]).input_ids)

    assert tokens(math.inf) < 0.7 * tokens(1)


def test_missing_and_corrupt(report: TokenizerReport, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such tokenizer folder"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no tokenizer\.json in"):
        load_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_bytes((Path(report.out) / "tokenizer.json").read_bytes()[:1000])
    with pytest.raises(DataError, match="is corrupt") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    file.write_text("{}")
    with pytest.raises(DataError, match="is corrupt"):
        load_tokenizer(tmp_path)


def test_corrupt_settings(report: TokenizerReport, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((Path(report.out) / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match="is corrupt"):
        load_tokenizer(tmp_path)


def test_vocabulary_larger_than_the_models(tokenizer: PreTrainedTokenizerFast) -> None:
    size = vocabulary_size(tokenizer)
    check_vocabulary(tokenizer, size)
    check_vocabulary(tokenizer, size + 24)
    with pytest.raises(DataError, match=f"the tokenizer has {size} ids, the model's vocabulary has 300"):
        check_vocabulary(tokenizer, 300)


def test_bytes_per_token_of_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="no text"):
        bytes_per_token(tokenizer, [])


def test_real_english_and_korean(shared_data: Path, tmp_path: Path) -> None:
    files = [shared_data / "text_en/books_pd.valid.txt.xz", shared_data / "text_ko/kowiki.valid.txt.xz"]
    report = train_tokenizer(files, 4000, tmp_path / "out", max_bytes=1_500_000)
    english, korean = report.measurements
    assert english.held_out
    assert korean.held_out
    assert english.bytes_per_token > 3.0
    assert korean.bytes_per_token > 2.4


def test_a_token_of_characters_holds_one(tmp_path: Path) -> None:
    text = "나는 밥을 먹었다.\nThe café — naïve? 🙂\n" * 50 + "뷁 once"
    (tmp_path / "text.txt").write_text(text)
    train_tokenizer([tmp_path / "text.txt"], 400, tmp_path / "out", kind="characters")
    tokenizer = load_tokenizer(tmp_path / "out")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert all(len(tokenizer.decode([token])) <= 1 for token in set(ids))
    frequent = tokenizer("나는 밥을 The café 🙂", add_special_tokens=False)["input_ids"]
    assert len(frequent) == len("나는 밥을 The café 🙂"), "each has a token of its own"
    assert len(tokenizer("뷁", add_special_tokens=False)["input_ids"]) == len("뷁".encode()), "a rare one is bytes"
    with pytest.raises(DataError, match="kind of tokenizer 'letters'"):
        train_tokenizer([tmp_path / "text.txt"], 400, tmp_path / "other", kind="letters")
