from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pragnosia.errors import DataError
from pragnosia.measure import continuations
from pragnosia.measure.continuations import Continuation, Likelihood, likelihoods
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.modeling import PragnosiaForCausalLM

LIMIT = 64
ids = st.lists(st.integers(0, 96), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def model(make_config: Callable[..., PragnosiaConfig]) -> PragnosiaForCausalLM:
    torch.manual_seed(0)
    return PragnosiaForCausalLM(make_config(initializer_range=0.2)).eval()


@torch.no_grad()
def by_hand(model: PragnosiaForCausalLM, context: Sequence[int], tokens: Sequence[int]) -> Likelihood:
    inputs = [*context, *tokens][:-1][-LIMIT:]
    logits = model(torch.tensor([inputs])).logits[0, -len(tokens) :]
    chosen = logits.double().log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)]
    return Likelihood(float(chosen.sum()), logits.argmax(-1).tolist() == [*tokens])


def check(model: PragnosiaForCausalLM, requests: list[Continuation], batch_tokens: int = 100) -> None:
    found = likelihoods(model, requests, batch_tokens=batch_tokens)
    for answer, request in zip(found, requests, strict=True):
        expected = by_hand(model, *request)
        assert answer.log_probability == pytest.approx(expected.log_probability, rel=1e-4, abs=1e-4)
        assert answer.greedy == expected.greedy


@settings(max_examples=20)
@given(requests=st.lists(st.builds(Continuation, ids, ids), min_size=1, max_size=6), batch_tokens=st.integers(1, 60))
def test_padding_and_batching_change_nothing(
    model: PragnosiaForCausalLM, requests: list[Continuation], batch_tokens: int
) -> None:
    check(model, requests, batch_tokens)


def test_a_shared_context_is_read_once(model: PragnosiaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    context = torch.randint(97, (50,)).tolist()
    requests = [Continuation(context, torch.randint(97, (n,)).tolist()) for n in (1, 5, 5, 9)]
    requests.insert(2, Continuation([7, 8], [9]))
    read = 0
    forward = model.model.forward

    def counting(input_ids: torch.Tensor, **options: object) -> object:
        nonlocal read
        read += input_ids.numel()
        return forward(input_ids, **options)

    monkeypatch.setattr(model.model, "forward", counting)
    likelihoods(model, requests)
    assert read == 49 + 4 * 9 + 2
    monkeypatch.undo()
    check(model, requests)
    monkeypatch.setattr(continuations, "_WORTH_SHARING", 10**9)
    check(model, requests)


def test_what_the_model_would_have_said_is_greedy(model: PragnosiaForCausalLM) -> None:
    context = [3, 1, 4, 1, 5]
    said = model.generate(torch.tensor([context]), max_new_tokens=4, do_sample=False, pad_token_id=0)[0, 5:].tolist()
    other = [*said[:-1], (said[-1] + 1) % 97]
    answers = likelihoods(model, [Continuation(context, said), Continuation(context, other)])
    assert [answer.greedy for answer in answers] == [True, False]


def test_contexts_that_are_too_long_lose_their_beginning(model: PragnosiaForCausalLM) -> None:
    context = torch.randint(97, (100,)).tolist()
    check(model, [Continuation(context, [1, 2, 3]), Continuation(context, [4]), Continuation(context, [5, 6])])


def test_continuations_that_are_too_long_are_refused(model: PragnosiaForCausalLM) -> None:
    with pytest.raises(DataError, match="has 65 tokens, the model holds 64"):
        likelihoods(model, [Continuation([1], [2] * 65)])


def test_nothing_follows_with_certainty(model: PragnosiaForCausalLM) -> None:
    assert likelihoods(model, [Continuation([1, 2], [])]) == [(0.0, True)]
    assert likelihoods(model, []) == []
