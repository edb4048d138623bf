"""A dial is measured over the mechanisms that a model has, and what it says of a setting is what that setting does."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia import Pragnosia, PragnosiaConfig, PragnosiaForCausalLM
from pragnosia.data import Texts, train_tokenizer
from pragnosia.data.tokenizers import load_tokenizer
from pragnosia.errors import CheckpointError, DataError
from pragnosia.inference.dial import Dial, model_print
from pragnosia.inference.exits import Exit, Exits
from pragnosia.measure.accounting import account
from pragnosia.measure.dial import calibrate_dial, mechanisms
from pragnosia.measure.evaluation import evaluate
from pragnosia.measure.passages import opening
from pragnosia.model.setting import WHOLE

STORY = "Once upon a time there was a small brain. It slept most of the day, and woke a little for every word.\n" * 40
UNITS = {"experts": {"num_units": 12, "unit_width": 16, "thalamus": {"kind": "sigmoid", "num_awake": 4}}}
DENSE = {"feed_forward": {"width": 40}}
THRESHOLD = {"experts": {"num_units": 12, "unit_width": 16, "thalamus": {"kind": "threshold", "num_awake": 4}}}
EXITS = Exits(
    num_layers=3,
    vocab_size=300,
    agreement=0.9,
    tokens=1000,
    agreed=0.9,
    layers_per_token=2.0,
    exits=(Exit(layer=1, confidence=0.02, left=0.4, agreed=0.9, guesses_right=0.5),),
    draft=None,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(Texts([STORY], "story"), 300, folder)
    return load_tokenizer(folder)


def small(**dress: Any) -> Any:
    torch.manual_seed(0)
    config = PragnosiaConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=3,
        max_position_embeddings=64,
        initializer_range=0.3,
        attention={"num_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
        **dress,
    )
    return PragnosiaForCausalLM(config).eval()  # type: ignore[no-untyped-call]


def measured(model: Any, tokenizer: Any, exits: Exits | None = None, text: str = STORY, **more: Any) -> Dial | None:
    counted = account(model, precision="float32")
    story = Texts([text], "story")
    return calibrate_dial(model, tokenizer, story, counted=counted, name="a print", exits=exits, tokens=600, **more)


@pytest.mark.parametrize("dress", [UNITS, DENSE, THRESHOLD], ids=["units", "dense", "threshold"])
@pytest.mark.parametrize("exits", [None, EXITS], ids=["whole", "exits"])
def test_what_a_model_has(dress: dict[str, Any], exits: Exits | None, tokenizer: Any) -> None:
    model = small(**dress)
    told: list[tuple[int, int]] = []
    dial = measured(model, tokenizer, exits, progress=lambda done, total: told.append((done, total)))
    if dress is DENSE and exits is None:
        assert dial is None, "there is nothing to dial"
        return
    assert dial is not None
    assert told[-1][0] == told[-1][1] > 1
    assert all(done <= total for done, total in told)
    assert dial.notches[0].setting == WHOLE
    assert dial.notches[0].operations_per_token == pytest.approx(
        account(model, precision="float32", context=32).operations_per_token, rel=0.01 if dress is UNITS else 0.3
    )
    for more, less in itertools.pairwise(dial.frontier()):
        assert less.operations_per_token <= more.operations_per_token
        assert less.joules_per_token < more.joules_per_token
        assert more.setting == WHOLE or less.bits_per_byte > more.bits_per_byte
    if dress is DENSE:
        assert all(one.setting.awake == 1 for one in dial.notches)
    if exits is None:
        assert all(not one.setting.leave for one in dial.notches)
    one = dial.frontier()[-1]
    said, whole = list[torch.Tensor](), list[torch.Tensor]()
    for setting, words in ((WHOLE, whole), (one.setting, said)):
        found, size = opening(tokenizer, 300, [STORY], 616)
        again = evaluate(model, tokenizer, [STORY], context=64, stride=64, max_bytes=size, setting=setting, words=words)
        assert again.tokens == pytest.approx(found, abs=2)
    assert one.bits_per_byte == pytest.approx(again.bits_per_byte)
    assert one.layers_used == pytest.approx(again.layers_per_token)
    assert one.agreed == pytest.approx(float((torch.cat(said) == torch.cat(whole)).double().mean()))
    assert one.agreed < 1 or one.setting == WHOLE
    assert dial.whole.agreed == 1


def test_words_are_those_that_would_be_said(tokenizer: Any) -> None:
    """The likeliest after each token, as the model's own logits have it."""
    model, words = small(**UNITS), list[torch.Tensor]()
    text = STORY[:100]
    read = evaluate(model, tokenizer, [text], context=64, stride=64, words=words)
    ids = torch.tensor([[tokenizer.bos_token_id or tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
    assert read.tokens == ids.shape[1] - 1 < 64
    with torch.inference_mode():
        assert torch.equal(torch.cat(words), model(ids[:, :-1]).logits[0].argmax(-1))


@pytest.mark.parametrize("tokens", [10, 600, 10**6])
def test_the_opening_of_a_text(tokenizer: Any, tokens: int) -> None:
    """So many bytes hold so many tokens."""
    documents = ["Ünd so füˑrth: naïve. " * 3, STORY]
    found, size = opening(tokenizer, 300, documents, tokens)
    whole = [len(tokenizer(text)["input_ids"]) for text in documents]
    assert found == min(tokens, sum(whole))
    joined = sum(len(text.encode()) for text in documents)
    assert size <= joined
    first = documents[0].encode()[:size].decode(errors="ignore")
    rest = STORY[: max(0, size - len(documents[0].encode()))]
    assert sum(len(tokenizer(part)["input_ids"]) for part in (first, rest)) == pytest.approx(found, abs=2)


def test_levels_that_wake_as_many_are_one() -> None:
    units, gates, exits = mechanisms(small(**UNITS), None)
    assert [setting.awake for setting in units] == [0.75, 0.5, 0.25], "an eighth of four wakes one, as a quarter does"
    assert gates == exits == []
    assert len(mechanisms(small(**THRESHOLD), EXITS)[0]) == 4
    assert all(setting.memory == "propagated" for setting in mechanisms(small(**DENSE), EXITS)[2])


def test_a_text_that_is_too_short(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="measuring settings takes 512: give more text"):
        measured(small(**UNITS), tokenizer, text=STORY[:300])


def test_energy_on_disk_is_what_is_spoken(tokenizer: Any, tmp_path: Path) -> None:
    """Measured, written, read by a speaker, and turned to."""
    model = small(**UNITS)
    model.save_pretrained(tmp_path)
    dial = measured(model, tokenizer)
    assert dial is not None
    dial.write(tmp_path)
    with pytest.raises(CheckpointError, match="another model"):
        Pragnosia.from_pretrained(tmp_path).turned(0.9)
    replace(dial, model=model_print(tmp_path)).write(tmp_path)
    speaker = Pragnosia.from_pretrained(tmp_path)
    cheapest = dial.frontier()[-1]
    assert speaker.turned("draft") == cheapest.setting != WHOLE
    said = speaker.generate_tokens([5, 6], max_new_tokens=9, energy=dial.share(cheapest))
    assert said == speaker.generate_tokens([5, 6], max_new_tokens=9, setting=cheapest.setting)
