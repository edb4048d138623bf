"""One-pass learning's kernel against the same arithmetic in plain Python, and what a tree must be."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from pragnosia.kernels import coincidence as kernel
from pragnosia.kernels.coincidence import tree_of
from pragnosia.kernels.compiled import native_library
from pragnosia.learning.coincidence import huffman
from pragnosia.model.coincidence import CoincidenceConfig, CoincidenceForCausalLM

SMALL = {"vocab_size": 12, "bucket_bits": 10, "match_bits": 8, "history_bits": 9, "correction_bits": 7}
WORDS = ([0, 1, 2, 10], [3, 4, 10], [5, 6, 7, 8, 2, 9, 11], [0, 1, 3, 3, 4, 5, 9, 10])


def tokens(count: int) -> torch.Tensor:
    """Words of twelve tokens in an order without end, so that patterns come back."""
    chance = random.Random(0)
    said = [token for _ in range(count) for token in chance.choice(WORDS)]
    return torch.tensor(said[:count])


def learner() -> CoincidenceForCausalLM:
    model = CoincidenceForCausalLM(CoincidenceConfig(**SMALL))
    model.plant(huffman(torch.bincount(tokens(500), minlength=12)))
    kinds: Any = model.kinds
    kinds[:9], kinds[9], kinds[10] = kernel.LETTER, kernel.NEWLINE, kernel.SPACE
    return model


@pytest.mark.skipif(native_library() is None, reason="no compiler")
def test_compiled_and_plain_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """More tokens than the history holds and more patterns than buckets, so that both wrap and give way."""
    ids, models, found = tokens(700), (learner(), learner()), []
    for model, compiled in zip(models, (True, False), strict=True):
        if not compiled:
            monkeypatch.setattr(kernel, "native_library", lambda: None)
        said, _, state = model.read(ids[:620], model.opening(), learn=True)
        still, behind, state = model.read(ids[620:], state, rows=2)
        found.append((said, still, behind, state))
    ours, plain = found
    for one, other in zip(ours[:3], plain[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
    assert torch.equal(ours[3], plain[3])
    assert torch.equal(models[0].history, models[1].history)
    assert torch.equal(models[0].slots[:, 0], models[1].slots[:, 0]), "other neurons gave way"


def test_what_is_said_of_all_tokens_sums_to_one_and_holds_what_was_said() -> None:
    model, ids = learner(), tokens(400)
    _, _, state = model.read(ids[:-1], model.opening(), learn=True)
    _, behind, _ = model.read(ids[:-1], model.opening(), rows=1)
    assert float(behind.exp().sum()) == pytest.approx(1, abs=1e-5)
    said, _, _ = model.read(ids, model.opening())
    torch.testing.assert_close(behind[0, ids[-1]], said[-1])
    assert int(state[0]) == 399


def test_reading_leaves_everything_as_it_was() -> None:
    model = learner()
    model.read(tokens(200), model.opening(), learn=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    opening = model.opening()
    model.read(tokens(100), opening, rows=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not opening.any()


def test_one_reading_or_several_are_the_same() -> None:
    ids, whole, parts = tokens(300), learner(), learner()
    at_once, _, _ = whole.read(ids, whole.opening(), learn=True)
    first, _, state = parts.read(ids[:123], parts.opening(), learn=True)
    rest, _, _ = parts.read(ids[123:], state, learn=True)
    assert torch.equal(at_once, torch.cat([first, rest]))


def test_a_huffman_code_is_as_short_as_can_be() -> None:
    counts = torch.tensor([40, 30, 15, 10, 5])
    lengths = tree_of(huffman(counts)).start.diff()
    assert lengths.tolist() == [1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    "branches", [[[1, -1], [-2, -2]], [[-1, 0], [-2, -3]], [[-1, -2], [-1, -3]], [[5, -1], [-2, -3]]]
)
def test_what_is_no_tree_is_refused(branches: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="tree of decisions"):
        tree_of(torch.tensor(branches))


def test_a_token_that_is_none_is_refused() -> None:
    model = learner()
    with pytest.raises(ValueError, match="0 to 11"):
        model.read(torch.tensor([3, 12]), model.opening())
