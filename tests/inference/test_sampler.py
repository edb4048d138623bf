"""Sampling: each option warps the logits as transformers' generate does with the same option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from pragnosia import PragnosiaForCausalLM
from pragnosia.inference.sampler import Sampler, Sampling

CPU = torch.device("cpu")
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 1.7},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 7},
    {"temperature": 1.0, "top_k": 100000},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 1.0, "top_p": 1.0},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 1.0, "min_p": 0.0},
    {"temperature": 1.0, "repetition_penalty": 1.5},
    {"temperature": 1.0, "repetition_penalty": 0.7},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_warped_as_by_transformers(options: dict[str, Any], make_model: Callable[..., PragnosiaForCausalLM]) -> None:
    model: Any = make_model()
    ids = torch.randint(0, model.config.vocab_size, (1, 20))
    logits = model(ids).logits[:, -1].detach()
    theirs = model.generate(
        ids,
        generation_config=GenerationConfig(**({"top_k": 0} | options), do_sample=True, max_new_tokens=1),
        return_dict_in_generate=True,
        output_scores=True,
    )
    sampler = Sampler(Sampling(**options), CPU)
    warpers: Any = sampler.warpers
    ours = warpers(ids, logits.float()) if sampler.warpers else logits
    torch.testing.assert_close(ours, theirs.scores[0])


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_temperature_zero_is_greedy(penalty: float) -> None:
    logits = torch.randn(1, 50)
    seen = logits.argmax(-1, keepdim=True)
    sampler = Sampler(Sampling(temperature=0.0, repetition_penalty=penalty, top_k=3), CPU)
    expected = logits.clone()
    expected[0, seen] /= penalty
    assert torch.equal(sampler(seen, logits), expected.argmax(-1, keepdim=True))


def test_seeds_reproduce_and_differ() -> None:
    seen, logits = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1000)

    def drawn(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), CPU)
        return [int(sampler(seen, logits)) for _ in range(5)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert drawn(None) != drawn(None), "without a seed each run is its own"


def test_drawing_disturbs_nobody_elses_chance() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Sampler(Sampling(temperature=1.0), CPU)(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 9))
    assert torch.equal(torch.rand(3), expected)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]])
    sampler = Sampler(Sampling(temperature=2.0, seed=0), CPU)
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[sampler(torch.zeros(1, 1, dtype=torch.long), logits)] += 1
    torch.testing.assert_close(counts / 4000, (logits[0] / 2).softmax(-1), rtol=0, atol=0.03)
