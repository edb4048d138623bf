"""One-pass learning: it learns, it is a citizen of transformers, and damage is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pragnosia.data import Texts, load_tokenizer, train_tokenizer
from pragnosia.errors import CheckpointError, ConfigError, DataError
from pragnosia.learning.coincidence import Bytes, learn_text, score_text, sprout
from pragnosia.model.coincidence import CoincidenceConfig, CoincidenceForCausalLM

STORY = "Once upon a time there was a small brain.\nIt slept most of the day, and woke a little for every word.\n\n"
SMALL = {"bucket_bits": 13, "match_bits": 10, "history_bits": 12, "correction_bits": 8}


@pytest.fixture(scope="module")
def alphabet(tmp_path_factory: pytest.TempPathFactory) -> Bytes:
    folder = tmp_path_factory.mktemp("bytes")
    train_tokenizer([Texts(["bytes"])], 260, folder)
    return Bytes(load_tokenizer(folder))


def learned(alphabet: Bytes, text: str) -> CoincidenceForCausalLM:
    ids = alphabet.encode(text)
    model = sprout(CoincidenceConfig(**SMALL), alphabet, [ids])
    learn_text(model, ids)
    return model


def test_what_came_often_costs_almost_nothing(alphabet: Bytes) -> None:
    ids = alphabet.encode(STORY)
    fresh = sprout(CoincidenceConfig(**SMALL), alphabet, [ids])
    before = -float(score_text(fresh, ids).mean()) / math.log(2)
    after = -float(score_text(learned(alphabet, STORY * 6), ids)[50:].mean()) / math.log(2)
    assert before > 3
    assert after < 0.3


def test_learning_goes_on_while_it_is_used(alphabet: Bytes) -> None:
    model, news = learned(alphabet, STORY * 3), alphabet.encode("A quick red fox jumped over the lazy dog. " * 2)
    still = score_text(model, news)
    _, state = learn_text(model, news)
    assert score_text(model, news).mean() > still.mean() + 0.5
    assert int(state[0]) == len(news)


def test_bytes_are_the_tokenizers_own(alphabet: Bytes, tmp_path: Path) -> None:
    train_tokenizer([Texts(["bytes"])], 260, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    text = "Grüße, 세계! e\u0301\t\x7f\n'tis"
    assert alphabet.encode(text).tolist() == tokenizer(text)["input_ids"]
    train_tokenizer([Texts([STORY * 5])], 280, tmp_path / "merges")
    with pytest.raises(DataError, match="reads bytes"):
        Bytes(load_tokenizer(tmp_path / "merges"))


def test_a_citizen_of_transformers(alphabet: Bytes, tmp_path: Path) -> None:
    model, ids = learned(alphabet, STORY * 4), alphabet.encode("Once upon")[None]
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CoincidenceConfig)
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)
    said = again.generate(ids, max_new_tokens=15, do_sample=False)
    assert torch.equal(said[0], alphabet.encode("Once upon a time there was"[:24]))


def test_padding_is_left_out_and_the_loss_is_that_of_what_was_read(alphabet: Bytes) -> None:
    model, ids = learned(alphabet, STORY), alphabet.encode("It slept")
    padded = torch.cat([torch.zeros(3, dtype=torch.int64), ids])[None]
    mask = torch.arange(11)[None] >= 3
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[0, 3:], model(ids[None]).logits[0])
    assert model(ids[None], logits_to_keep=2).logits.shape == (1, 2, 260)
    loss = model(ids[None], labels=ids[None]).loss
    torch.testing.assert_close(loss, -score_text(model, ids)[1:].mean())


def test_damage_is_told(alphabet: Bytes) -> None:
    model: Any = learned(alphabet, STORY)
    model._tree = None
    model.history[3] = 4000
    with pytest.raises(CheckpointError, match="damaged"):
        model(torch.tensor([[1, 2]]))
    with pytest.raises(ConfigError, match="bucket_bits"):
        CoincidenceConfig(bucket_bits=40)
    with pytest.raises(ConfigError, match="reads bytes"):
        CoincidenceConfig(vocab_size=50257)


@pytest.mark.parametrize("native", [True, False])
def test_pieces_are_weighed_as_if_they_were_read(
    alphabet: Bytes, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = learned(alphabet, STORY * 3)
    _, _, state = model.read(alphabet.encode("Once upon a "), model.opening())
    before, pieces = state.clone(), [alphabet.encode(text) for text in ("time", "t", "small brain", "")]
    if not native:
        monkeypatch.setattr("pragnosia.kernels.coincidence.native_library", lambda: None)
    wanted = torch.stack([model.read(piece, state)[0].sum() for piece in pieces])
    torch.testing.assert_close(model.weigh(pieces, state), wanted)
    assert torch.equal(state, before)
    assert model.weigh([], state).tolist() == []
