"""The sampling program against transformers' warpers and a cumulative sum, in Triton's interpreter or on a GPU.

Run it in the interpreter, where triton is installed: TRITON_INTERPRET=1 pytest tests/kernels/test_triton_sampling.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pragnosia.inference.sampler import Sampler, Sampling
from pragnosia.kernels import triton, triton_sampling

INTERPRETED = triton.interpreted() and triton.supports(torch.zeros(1))
DEVICE = "cpu" if INTERPRETED else "cuda"
HERE = () if INTERPRETED else pytest.mark.gpu
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 1.7, "top_k": 1},
    {"temperature": 1.0, "top_k": 7},
    {"temperature": 1.0, "top_k": 100000},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
]


def warped(logits: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Chances of tokens by transformers."""
    warpers: Any = Sampler(Sampling(**options), torch.device(DEVICE)).warpers
    none = torch.zeros(len(logits), 0, dtype=torch.long, device=DEVICE)
    kept: torch.Tensor = warpers(none, logits.float()) if warpers else logits.float()
    return kept.softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [pytest.param(options, marks=HERE) for options in OPTIONS], ids=str)
def test_a_chance_falls_where_it_does_in_plain_torch(
    options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_sampling, "_TILE", 64)  # five tiles
    if dtype == torch.bfloat16:  # logits of few digits are equally likely by the dozen: at an edge of top-p all stay
        options = {name: value for name, value in options.items() if name != "top_p"}
    torch.manual_seed(0)
    places = torch.stack([torch.randperm(301, device=DEVICE) for _ in range(48)])
    logits = (places * 0.02 - 3 + places**3 / 2e7).to(dtype)
    logits[:, 5] = -torch.inf
    chances = (torch.arange(48, device=DEVICE) + 0.37) / 48
    told = triton_sampling.at_chances(logits, chances, **options)
    share = warped(logits, options)
    end, own = share.cumsum(-1).gather(1, told)[:, 0], share.gather(1, told)[:, 0]
    assert bool((own > 0).all()), "a token that was left out"
    assert bool((end > chances - 1e-5).all())
    assert bool((end - own < chances + 1e-5).all())


@pytest.mark.parametrize("rows", [pytest.param(3, marks=HERE)])
def test_all_that_are_equally_likely_stay(rows: int) -> None:
    logits = torch.zeros(rows, 10, device=DEVICE)
    logits[:, 4] = -1.0
    chances = torch.tensor([0.0, 0.5, 0.9999999], device=DEVICE)
    assert triton_sampling.at_chances(logits, chances, top_k=3)[:, 0].tolist() == [0, 5, 9]
    assert triton_sampling.at_chances(logits, chances, top_p=0.1)[:, 0].tolist() == [0, 5, 9]


@pytest.mark.parametrize("seed", [pytest.param(3, marks=HERE)])
def test_a_sampler_draws_with_it(seed: int) -> None:
    logits, seen = torch.randn(1, 50, device=DEVICE), torch.tensor([[7, 9]], device=DEVICE)
    logits[0, 7] = 20.0
    options = {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "seed": seed}

    def drawn(**more: Any) -> list[int]:
        sampler = Sampler(Sampling(**options, **more), torch.device(DEVICE))
        return [int(sampler(seen, logits)) for _ in range(20)]

    assert drawn() == drawn() == [7] * 20
    some = drawn(repetition_penalty=1000.0)
    assert some == drawn(repetition_penalty=1000.0)
    assert len(set(some)) > 3
    assert 7 not in some


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_for_a_gpu_that_is_not_here(compiled: Callable[[str, int], int], capability: int) -> None:
    assert compiled(_COMPILE, capability) == 2


_COMPILE = """
from pragnosia.kernels.triton_sampling_programs import draw_tokens

KINDS = {"logits": "*bf16", "chances": "*fp32", "chosen": "*i64"}
KINDS |= {name: "fp32" for name in ("temperature", "top_p", "min_p")}
for block in (512, 4096):
    build(draw_tokens, {"BLOCK": block}, KINDS, num_warps=8)
"""
