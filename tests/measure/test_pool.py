"""What a model makes of a pool, against the model's own loss and torch's divergence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM
from pragnosia.data import Texts, load_tokenizer, train_tokenizer
from pragnosia.errors import ConfigError, DataError
from pragnosia.measure.pool import Member, committee, look, pieces_of
from pragnosia.model.setting import Setting

TALE = "The old cat slept by the fire. A red king saw snow in Rome, and said nothing of it to the queen.\n" * 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("words")
    train_tokenizer(Texts([TALE * 5], "tale"), 280, folder)
    return load_tokenizer(folder)


def made(seed: int = 0, **changes: object) -> PragnosiaForCausalLM:
    torch.manual_seed(seed)
    shape = {
        "vocab_size": 280,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "attention": {"num_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
        "feed_forward": {"width": 16},
    }
    return PragnosiaForCausalLM(PragnosiaConfig(**{**shape, **changes})).eval()


def test_pieces_are_the_text(tokenizer: object) -> None:
    texts = [TALE, " ", "One 한국어 word.", "x"]
    pieces = pieces_of(tokenizer, 280, texts, 20)
    assert "".join(piece.text for piece in pieces if piece.document == 0) == TALE
    for piece in pieces:
        assert 2 <= len(piece.tokens) <= 20
        assert texts[piece.document][piece.start :].startswith(piece.text)
    assert {piece.document for piece in pieces} == {0, 2}
    with pytest.raises(DataError, match="no text to choose from"):
        pieces_of(tokenizer, 280, ["", " "], 20)


@torch.no_grad()
def test_loss_and_state_are_those_of_each_text_alone(tokenizer: object) -> None:
    model, pieces = made(), pieces_of(tokenizer, 280, [TALE, "A cat."], 20)
    views = look(model, pieces, start=1)
    assert views.disagreement is None
    for number, piece in enumerate(pieces):
        row = torch.cat((torch.tensor([1]), piece.tokens))[None]
        assert float(views.loss[number]) == pytest.approx(float(model(row, labels=row).loss), rel=1e-4)
        hidden = model.model(row[:, :-1], use_cache=False).last_hidden_state[0].mean(0)
        torch.testing.assert_close(views.states[number], hidden, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_disagreement_is_the_divergence_to_the_mean(tokenizer: object) -> None:
    one, other = made(0), made(1)
    pieces = pieces_of(tokenizer, 280, [TALE], 20)
    called, members = committee(one, other)
    assert called == "two models"
    views = look(one, pieces, None, members)
    assert views.disagreement is not None
    tokens = pieces[0].tokens[None, :-1]
    first, second = (model(tokens).logits[0].softmax(-1) for model in (one, other))
    mean = (first + second) / 2
    expected = sum(F.kl_div(mean.log(), part, reduction="none").sum(-1).mean() for part in (first, second)) / 2
    assert float(views.disagreement[0]) == pytest.approx(float(expected), rel=1e-3)
    alone = look(one, pieces, None, [Member(one), Member(one)]).disagreement
    assert alone is not None
    assert float(alone.max()) < 1e-5, "who is of one mind does not disagree"


def test_who_can_disagree(tokenizer: object) -> None:
    with pytest.raises(ConfigError, match="cannot disagree with itself"):
        committee(made())
    with pytest.raises(ConfigError, match="same tokens"):
        committee(made(), made(vocab_size=300))
    experts = {"num_units": 4, "unit_width": 8, "thalamus": {"kind": "sigmoid", "num_awake": 2}}
    sparse = made(feed_forward=None, experts=experts)
    called, members = committee(sparse)
    assert "half of the units" in called
    assert members[1].setting == Setting(awake=0.5)
    pieces = pieces_of(tokenizer, 280, [TALE], 20)
    exits = made(exits={"layers": [1]})
    for model in (sparse, exits):
        apart = look(model, pieces, 1, committee(model)[1]).disagreement
        assert apart is not None
        assert float(apart.min()) > 0
