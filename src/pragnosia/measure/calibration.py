"""What the inputs of every matrix bring on a text: their mean squares, in one pass, from memory or within a budget.

    of a matrix       E[x_k^2] over all tokens
    of a unit's up    E[x_k^2] over the tokens that woke it
    of a unit's down  E[(g h_k)^2] over the same, h = act(up x + up_bias), g the unit's strength

A unit that few tokens woke has seen too little: its mean is that of its own tokens and of PRIOR tokens of its bank's
mean, which is all that a unit that never woke goes by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pragnosia.checkpoints.blueprint import Blueprint, blueprint, is_unit
from pragnosia.data.sources import Source
from pragnosia.errors import CheckpointError
from pragnosia.inference.budget import as_bytes, make_plan, resident_memory
from pragnosia.inference.loading import load_model, load_tokenizer
from pragnosia.inference.plan import Plan
from pragnosia.inference.shelf import Shelf, open_shelf
from pragnosia.inference.stream import StreamedBank, build
from pragnosia.measure.passages import BYTES_PER_TOKEN, Passages
from pragnosia.model.bank import Bank
from pragnosia.model.cortex import Cortex
from pragnosia.quantisation.calibration import Calibration, even
from pragnosia.tuning.units import padded
from pragnosia.units import MIB

TOKENS = 4096
WINDOW = 1024
"""Tokens read at once, as many as a plan has scratch for."""
PRIOR = 16
_PRODUCTS = 96 * MIB  # the code that torch's library of products writes for each shape, and keeps


def calibrate(
    folder: str | Path, text: Source, *, tokens: int = TOKENS, memory: int | str | None = None
) -> Calibration:
    """The calibration of a model on the first `tokens` of a text; the model is loaded when it is asked to gather.

    Raises CheckpointError, DataError, and BudgetError for a `memory` that is too small.
    """
    print_ = blueprint(folder)
    config = print_.config
    tokenizer = load_tokenizer(folder, config.vocab_size, config.tokenizer_digest)
    length = min(int(config.max_position_embeddings), WINDOW)
    windows = list(cut(tokenizer, text, int(config.vocab_size), tokens, length))
    digest = hashlib.sha256(f"{length} {PRIOR} ".encode())
    for window in windows:
        digest.update(window.numpy().tobytes())
    load: Callable[[], Cortex] = partial(load_model, folder)
    if memory is not None:
        shelf = open_shelf(folder)
        reserved = resident_memory() + _needed(print_, length)
        plan = make_plan(shelf, as_bytes(memory), context=length, interpreter=reserved)
        load = partial(_built, shelf, plan)

    def gather() -> dict[str, Tensor]:
        return mean_squares(load(), windows)

    return Calibration(digest.hexdigest(), sum(map(len, windows)), gather)


def _needed(print_: Blueprint, tokens: int) -> int:
    """Bytes beside the model: the sums and the means made of them, one unit's hidden values, products' code."""
    units = [(name, shape) for name, shape in print_.shapes.items() if is_unit(name)]
    kept = sum(2 * 4 * shape[0] * shape[-1] for _, shape in units)
    at_work = max((4 * tokens * (shape[1] + 2 * shape[2]) for _, shape in units), default=0)
    return int(kept + 2 * at_work) + _PRODUCTS


def cut(
    tokenizer: PreTrainedTokenizerBase, text: Source, vocab_size: int, tokens: int, length: int
) -> Iterator[Tensor]:
    """The first `tokens` of all documents one after the other, in windows (T,) of `length`. Raises DataError."""
    held, left = torch.empty(0, dtype=torch.long), tokens
    for passage in Passages(tokenizer, vocab_size).of(text.documents(), BYTES_PER_TOKEN * tokens):
        held, left = torch.cat([held, passage.tokens[:left]]), left - len(passage.tokens[:left])
        while len(held) >= length:
            yield held[:length].clone()
            held = held[length:]
        if not left:
            break
    if len(held):
        yield held.clone()


@torch.inference_mode()
def mean_squares(model: Cortex, windows: Sequence[Tensor]) -> dict[str, Tensor]:
    """By our tensor name: (K,) of a linear layer's weight, (U, K) of a bank's up and down; of mean 1 along K.

    Raises CheckpointError for a model that computes no numbers.
    """
    seen: dict[str, _Sums] = {}
    hooks = []
    for name, module in model.model.named_modules(prefix="model"):
        name = name.replace(".piece", "")  # a layer that lies on disk
        if isinstance(module, nn.Linear):
            seen[f"{name}.weight"] = sums = _Sums(1, module.in_features)
            hooks.append(module.register_forward_pre_hook(partial(_linear, sums)))
        elif isinstance(module, Bank | StreamedBank):
            width, unit_width = module.down.shape[1:] if isinstance(module, Bank) else _widths(module)
            both = seen[f"{name}.up"], seen[f"{name}.down"] = (
                _Sums(module.num_units, width),
                _Sums(module.num_units, unit_width),
            )
            hooks.append(module.register_forward_pre_hook(partial(_bank, both)))
    try:
        for window in windows:
            model.model(window[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    found = {name: sums.means() for name, sums in seen.items() if sums.counts.any()}
    damaged = next((name for name, means in found.items() if not bool(means.isfinite().all())), None)
    if damaged is not None:
        raise CheckpointError(f"the inputs of {damaged} are not numbers: the model's weights are damaged")
    return {name: means if is_unit(name) else means[0] for name, means in found.items()}


class _Sums:
    """Squares of (U, K) inputs, and of how many tokens."""

    def __init__(self, num_units: int, depth: int) -> None:
        self.squares, self.counts = torch.zeros(num_units, depth), torch.zeros(num_units)

    def add(self, unit: int, x: Float[Tensor, "N K"]) -> None:
        self.squares[unit] += x.float().square().sum(0)
        self.counts[unit] += len(x)

    def means(self) -> Tensor:
        """(U, K), of mean 1 along K."""
        if len(self.counts) == 1:
            return even(self.squares / self.counts)
        shared = self.squares.sum(0) / self.counts.sum()
        return even(self.squares.add_(shared, alpha=PRIOR).div_(self.counts[:, None] + PRIOR))


def _linear(sums: _Sums, module: nn.Module, given: tuple[Any, ...]) -> None:
    sums.add(0, given[0].flatten(0, -2))


def _bank(both: tuple[_Sums, _Sums], module: Bank | StreamedBank, given: tuple[Any, ...]) -> None:
    x, units, strengths = given
    activation, bias = module.neurons, module.up_bias
    woken = [unit for unit in units.unique().tolist() if unit >= 0]
    for unit, up in _ups(module, woken):
        tokens, slots = (units == unit).nonzero(as_tuple=True)
        its = x[tokens].to(up.dtype)
        hidden = F.linear(padded(its), up, None if bias is None else bias[unit].to(up.dtype))
        hidden = activation(hidden[: len(its)])
        both[0].add(unit, its)
        both[1].add(unit, hidden.float() * strengths[tokens, slots, None].float())


def _ups(module: Bank | StreamedBank, woken: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Each unit's up (R, D), one after the other. Raises CheckpointError where it cannot be read."""
    if isinstance(module, Bank):
        yield from ((unit, module.up[unit]) for unit in woken)
        return
    bank = module.bank
    try:
        for unit, record in bank.pool.turns(bank.layer, woken):
            yield unit, bank.matrices(record)[0]
    except OSError as error:
        raise CheckpointError(f"{error}") from error


def _widths(module: StreamedBank) -> tuple[int, int]:
    return module.bank.width, module.bank.unit_width


def _built(shelf: Shelf, plan: Plan) -> Cortex:
    return build(shelf, plan)[0]
