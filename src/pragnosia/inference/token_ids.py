"""Token ids as a caller gives them."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import torch

from pragnosia.errors import PromptError


def token_ids(what: str, given: Any) -> list[int]:
    """Token ids as a list. Raises PromptError for what are none."""
    if isinstance(given, torch.Tensor):
        if given.ndim == 0 or given.numel() != given.shape[-1]:
            raise PromptError(f"{what} has shape {tuple(given.shape)}; give one text at a time, (T,) or (1, T)")
        given = given.flatten().tolist()
    whole = isinstance(given, Iterable) and not isinstance(given, str | bytes)
    ids = list(given) if whole else []
    if not whole or not all(isinstance(token, Integral) and not isinstance(token, bool) for token in ids):
        raise PromptError(f"{what} must be token ids, a list of whole numbers, got {given!r}")
    return [int(token) for token in ids]
