"""A one-pass learner beside a model: held to brute force, for tokens of bytes and of byte pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pragnosia.data import Texts, load_tokenizer, train_tokenizer
from pragnosia.errors import ConfigError
from pragnosia.inference.companion import CANDIDATES, Companion, token_bytes
from pragnosia.learning.coincidence import Bytes, learn_text, score_text, sprout
from pragnosia.model.coincidence import CoincidenceConfig, CoincidenceForCausalLM

STORY = "Once upon a time there was a small brain.\nIt slept most of the day, and woke a little for every word.\n\n"
NEWS = "A quick red fox jumped over the lazy dog, and the dog jumped over a small brain. "
SMALL = {"bucket_bits": 13, "match_bits": 10, "history_bits": 12, "correction_bits": 8}
NOTHING = torch.zeros(0)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = {}
    for name, size in (("bytes", 260), ("pairs", 300)):
        folder = tmp_path_factory.mktemp(name)
        train_tokenizer([Texts([STORY])], size, folder)
        found[name] = load_tokenizer(folder)
    return found


@pytest.fixture
def learner(tokenizers: dict[str, Any]) -> CoincidenceForCausalLM:
    alphabet = Bytes(tokenizers["bytes"])
    ids = alphabet.encode(STORY * 3)
    model = sprout(CoincidenceConfig(**SMALL), alphabet, [ids])
    learn_text(model, ids)
    return model


def beside(learner: CoincidenceForCausalLM, tokenizers: dict[str, Any], name: str, **options: Any) -> Companion:
    return Companion(learner, Bytes(tokenizers["bytes"]), tokenizers[name], **options)


def some_logits(rows: int, vocabulary: int) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("name", ["bytes", "pairs"])
def test_tokens_stand_for_bytes(tokenizers: dict[str, Any], name: str) -> None:
    spelled = token_bytes(tokenizers[name])
    text = STORY + "Ça va? 안녕"
    assert b"".join(spelled[token] or b"?" for token in tokenizers[name](text)["input_ids"]) == text.encode()
    assert all(spelled[token] is None for token in tokenizers[name].all_special_ids)


def test_pieces_of_sentences_stand_for_bytes_too() -> None:
    vocabulary = {"<s>": 0, "<0x0A>": 1, "▁the": 2, "é": 3}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")) == [
        *(None, b"\n", b" the", "é".encode())
    ]


@pytest.mark.parametrize("name", ["bytes", "pairs"])
def test_both_are_mixed_in_logarithms(learner: CoincidenceForCausalLM, tokenizers: dict[str, Any], name: str) -> None:
    companion, alphabet = beside(learner, tokenizers, name), Bytes(tokenizers["bytes"])
    ids, spelled = tokenizers[name]("Once upon a ti")["input_ids"], token_bytes(tokenizers[name])
    logits = some_logits(1, len(spelled))
    ours = logits[0].log_softmax(-1)
    mixed = companion.mix(ids, NOTHING, logits)[0]
    assert float(mixed.exp().sum()) == pytest.approx(1, abs=1e-5)
    known = torch.tensor([one is not None for one in spelled])
    taken = ours.masked_fill(~known, -torch.inf).topk(int(known.sum()) if name == "bytes" else CANDIDATES).indices
    theirs = torch.empty(len(taken))
    for place, token in enumerate(taken.tolist()):
        piece = spelled[token]
        assert piece is not None
        whole = torch.tensor([int(alphabet.ids[byte]) for byte in b"Once upon a ti" + piece])
        theirs[place] = score_text(learner, whole)[-len(piece) :].sum()
    wanted = 0.5 * sum(one.log_softmax(0).clamp(min=-12) for one in (ours[taken], theirs))
    wanted = wanted.log_softmax(0) + ours[taken].logsumexp(0)
    torch.testing.assert_close(mixed[taken], wanted, rtol=0, atol=2e-3)
    rest = torch.ones(len(spelled), dtype=torch.bool)
    rest[taken] = False
    torch.testing.assert_close(mixed[rest], ours[rest], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["bytes", "pairs"])
def test_a_text_the_learner_knows_becomes_likely(
    learner: CoincidenceForCausalLM, tokenizers: dict[str, Any], name: str
) -> None:
    companion = beside(learner, tokenizers, name)
    ids = tokenizers[name](STORY)["input_ids"]
    logits = some_logits(len(ids) - 1, len(token_bytes(tokenizers[name])))
    after = torch.tensor(ids[1:])[:, None]
    logits = logits.scatter_add(1, after, torch.full(after.shape, 4.0))  # a model that has an idea
    alone = logits.log_softmax(-1).gather(1, after)[:, 0]
    scores = companion.score(ids, logits, logits)
    assert scores.mean() > float(alone.mean()) / 2
    assert float(companion.weights[-1, 1]) > float(companion.weights[-1, 0]), "it is believed where it is sure"
    companion.cut(0)
    parts = [companion.score(ids[:41], logits[:40], logits[:40])]
    again = beside(learner, tokenizers, name)
    whole = again.score(ids[:41], logits[:40], logits[:40])
    assert parts[0].mean() > whole.mean(), "what weights learned stays from text to text"
    again = beside(learner, tokenizers, name)
    split = [again.score(ids[:33], logits[:32], logits[:32]), again.score(ids[32:41], logits[32:40], logits[32:40])]
    np.testing.assert_allclose(np.concatenate(split), whole, atol=1e-6)


def test_it_learns_only_where_it_is_asked_to(learner: CoincidenceForCausalLM, tokenizers: dict[str, Any]) -> None:
    ids = tokenizers["bytes"](NEWS * 4)["input_ids"]
    logits = torch.zeros(len(ids) - 1, 260)
    before = {name: table.clone() for name, table in learner.state_dict().items()}
    still = beside(learner, tokenizers, "bytes").score(ids, logits, logits)
    assert all(torch.equal(table, before[name]) for name, table in learner.state_dict().items())
    learning = beside(learner, tokenizers, "bytes", learn=True).score(ids, logits, logits)
    assert learning.mean() > still.mean() + 0.5
    assert not all(torch.equal(table, before[name]) for name, table in learner.state_dict().items())


def test_a_prompt_teaches_the_weights_and_another_text_is_heard_anew(
    learner: CoincidenceForCausalLM, tokenizers: dict[str, Any]
) -> None:
    ids, logits = tokenizers["bytes"](STORY)["input_ids"], some_logits(200, 260)
    companion = beside(learner, tokenizers, "bytes")
    companion.heard(ids[:60], logits[:60], 0, lambda rows: rows)
    assert not torch.equal(companion.weights, torch.full_like(companion.weights, 0.5))
    here = companion.mix(ids[:60], NOTHING, logits[:1])
    companion.mix(tokenizers["bytes"](NEWS)["input_ids"], NOTHING, logits[:1])
    torch.testing.assert_close(companion.mix(ids[:60], NOTHING, logits[:1]), here, rtol=0, atol=0)


def test_what_is_no_learner_is_told(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no one-pass learner") as caught:
        Companion.open(tmp_path, tokenizers["bytes"])
    assert "\n" not in str(caught.value)
