"""What a unit is worth: how much would be missing without it.

    reap        mean over the tokens that woke it of  strength * |what it said|      Lasby et al. 2025, arXiv 2510.13999
    magnitude   |up| |down|                                                           of its weights, no text is needed
    load        how many tokens woke it; none: it is dead

One number per unit and sparse layer, the larger the better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.model.bank import Bank
from pragnosia.model.cortex import Cortex

Worth = list[Float[Tensor, " U"]]
MEASURES = ("reap", "magnitude", "load")


def worth(model: Cortex, by: str, windows: Sequence[Tensor] = ()) -> Worth:
    """Of every unit in every sparse layer; `windows` are tokens (T,) to look on at. Raises ConfigError."""
    if by not in MEASURES:
        raise ConfigError(unknown_name("measure of what a unit is worth", by, MEASURES))
    banks = [experts.bank for experts in model.experts()]
    if by == "magnitude":
        return [_norms(bank.up) * _norms(bank.down) for bank in banks]
    if not windows:
        raise ConfigError(f"{by} looks on while units work; give it text")
    seen = [_Seen(bank) for bank in banks]
    with _watching(banks, [one.count if by == "load" else one.listen for one in seen]):
        _read(model, windows)
    if by == "load":
        return [one.wakings for one in seen]
    return [one.said / one.wakings.clamp_min(1.0) for one in seen]


def _norms(weight: Tensor) -> Float[Tensor, " U"]:
    norms: Tensor = weight.detach().float().flatten(1).norm(dim=1).cpu()
    return norms


class _Seen:
    """What one bank did."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.wakings, self.said = torch.zeros(bank.num_units), torch.zeros(bank.num_units)

    def count(self, x: Tensor, units: Tensor, strengths: Tensor) -> None:
        """Who woke."""
        self.wakings += torch.bincount(units[units >= 0].cpu(), minlength=len(self.wakings))

    def listen(self, x: Tensor, units: Tensor, strengths: Tensor) -> None:
        """Who woke, and how loudly it spoke."""
        self.count(x, units, strengths)
        for unit in units.unique().tolist():
            if unit < 0:
                continue
            tokens, slots = (units == unit).nonzero(as_tuple=True)
            alone = units.new_full((len(tokens), 1), unit)
            said = self.bank.forward(x[tokens], alone, strengths[tokens, slots][:, None])
            self.said[unit] += said.float().norm(dim=1).sum().cpu()


@contextmanager
def _watching(banks: Sequence[Any], watch: Sequence[Callable[..., None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for bank, one in zip(banks, watch, strict=True):
            hook = bank.register_forward_pre_hook(lambda module, given, one=one: one(*given))
            stack.callback(hook.remove)
        yield


@torch.no_grad()
def _read(model: Cortex, windows: Sequence[Tensor]) -> None:
    was = model.training
    model.eval()
    try:
        for window in windows:
            model.model(input_ids=window[None].to(model.device), use_cache=False)
    finally:
        model.train(was)
