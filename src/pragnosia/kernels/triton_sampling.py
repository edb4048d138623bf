"""The next token on a GPU, a program for each row: temperature, top-k, top-p, min-p, softmax and the draw (Triton).

What is left out is what transformers' warpers leave out, in their order; of tokens that are equally likely at the edge
of top-p all stay. Proven in Triton's interpreter; it has not run on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pragnosia.kernels.triton import supports

if TYPE_CHECKING:
    from torch import Tensor

_TILE = 4096


def takes(logits: Tensor) -> bool:
    """Whether the program runs on logits (B, V)."""
    return supports(logits)


def draw(
    logits: Tensor,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """A token of each row of logits (B, V): (B, 1), int64. The generator gives one number a row."""
    chances = torch.rand(len(logits), generator=generator, device=logits.device)
    return at_chances(logits, chances, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)


def at_chances(
    logits: Tensor,
    chances: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """(B, 1): where chances (B,) in [0, 1) fall, the kept tokens of a row one behind the other as they are numbered."""
    from pragnosia.kernels import triton_sampling_programs as programs

    logits, (rows, vocabulary) = logits.contiguous(), logits.shape
    chosen = torch.empty(rows, 1, dtype=torch.int64, device=logits.device)
    if rows:
        programs.draw_tokens[rows,](
            *(logits, chances, chosen, vocabulary, float(temperature)),
            *(vocabulary if top_k is None else min(top_k, vocabulary), 1.0 if top_p is None else top_p, min_p or 0.0),
            BLOCK=min(_TILE, max(16, 1 << (vocabulary - 1).bit_length())),
            num_warps=8,
        )
    return chosen
