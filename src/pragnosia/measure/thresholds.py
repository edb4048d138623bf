"""How small an input must be to sleep, so that a stated share of all inputs does: thresholds from a text.

    threshold of a layer = the `level` quantile of |x| over all its inputs and tokens       (TEAL, arXiv 2408.14690)

Where inputs sleep in one layer, the next sees others than before: thresholds are found once in the wide-awake model and
once more with those in place. What sleep costs is measured on text that no threshold has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pragnosia.data.sources import Source
from pragnosia.errors import CheckpointError, ConfigError, DataError
from pragnosia.inference.sparsity import Site, Sparsity, put_to_sleep, sites_of
from pragnosia.measure.calibration import WINDOW, cut
from pragnosia.measure.scoring import score
from pragnosia.measure.share_out import shared_out
from pragnosia.model.cortex import Cortex

TOKENS = 4096
LEAST = 256
"""Tokens of text without which a threshold, and what it costs, would be chance."""
SHIFT = 14
"""Bits of a number's 31 beside its sign that are rounded away: 512 magnitudes to each power of two are told apart."""


@dataclass(frozen=True)
class Examples:
    """Windows of tokens (T,) to find thresholds on, and others to examine the model on."""

    seen: Sequence[Tensor]
    held_out: Sequence[Tensor]

    @property
    def num_seen(self) -> int:
        """Tokens."""
        return sum(map(len, self.seen))

    @property
    def num_held_out(self) -> int:
        """Tokens."""
        return sum(map(len, self.held_out))


@dataclass(frozen=True)
class Examined:
    """How a model does on windows of text."""

    perplexity: float
    """Per token."""
    asleep: dict[str, float]
    """Of each site with a threshold, the share of inputs that slept."""


def check_level(level: float) -> None:
    """Raise ConfigError for a share that is none."""
    if not 0 <= level < 1:
        raise ConfigError(f"the level is {level}; it must lie in [0, 1): the share of inputs that sleep")


def examples(
    tokenizer: PreTrainedTokenizerBase, text: Source, *, tokens: int, vocab_size: int, context: int
) -> Examples:
    """The first `tokens` of a text, and up to TOKENS after them held out; of a short text three quarters and the rest.

    Raises DataError for a text of less than LEAST tokens.
    """
    length = min(context, WINDOW)
    flat = torch.cat(list(cut(tokenizer, text, vocab_size, tokens + min(tokens, TOKENS), length)))
    if len(flat) < LEAST:
        few = f"{text.name} holds {len(flat)} tokens, too few to calibrate on and examine"
        raise DataError(f"{few}; give a text of at least {LEAST}")
    seen = min(tokens, max(len(flat) * 3 // 4, len(flat) - min(tokens, TOKENS)))
    held_out = [window for window in flat[seen:].split(length) if len(window) > 1]
    return Examples(flat[:seen].split(length), held_out)


def calibrated(model: Cortex, windows: Sequence[Tensor], level: float, *, share_out: bool = False) -> Sparsity:
    """Thresholds at which `level` of all inputs sleep; the model sleeps so from then on.

    With `share_out` the level is the share of each layer's weights left unread, and its matrices differ (share_out.py).

    Raises ConfigError for a level that is none, CheckpointError for a model that computes no numbers.
    """
    check_level(level)
    seen = _magnitudes(model, windows)
    levels = dict.fromkeys(seen, level)
    if share_out:
        put_to_sleep(model, dict.fromkeys(seen, Site(0.0, 0.0)))
        levels = shared_out(model, lambda name, share: seen[name].quantile(name, share), windows, level)
    sites = _sites(seen, levels)
    put_to_sleep(model, sites)
    sites = _sites(_magnitudes(model, windows), levels)
    put_to_sleep(model, sites)
    return Sparsity(level, sum(map(len, windows)), sites)


@torch.inference_mode()
def examine(model: Cortex, windows: Sequence[Tensor]) -> Examined:
    """Perplexity on windows, each read by itself, and who slept. Raises CheckpointError where there are no numbers."""
    nats, tokens, counts = 0.0, 0, dict[str, list[int]]()

    def count(name: str, module: Any, given: tuple[Any, ...]) -> None:
        slept = counts.setdefault(name, [0, 0])
        slept[0] += int((given[0].abs() <= getattr(module, "threshold", 0.0)).sum())
        slept[1] += given[0].numel()

    with _listening(model, count):
        for window in windows:
            hidden = model.model(window[None, :-1], use_cache=False).last_hidden_state[0]
            nats -= float(score(hidden, model.lm_head, window[1:]).log_probabilities.sum(dtype=torch.float64))
            tokens += len(window) - 1
    if not math.isfinite(nats):
        raise CheckpointError(f"the model's predictions sum to {nats} nats, not a number: its weights are damaged")
    perplexity = math.exp(min(nats / tokens, 700.0))
    return Examined(perplexity, {name: slept / inputs for name, (slept, inputs) in counts.items()})


def _sites(seen: Mapping[str, _Magnitudes], levels: Mapping[str, float]) -> dict[str, Site]:
    return {name: Site(each.quantile(name, levels[name]), levels[name]) for name, each in seen.items()}


class _Magnitudes:
    """How often each magnitude came."""

    def __init__(self) -> None:
        self.counts = torch.zeros(1 << (31 - SHIFT), dtype=torch.long)

    def add(self, x: Tensor) -> None:
        codes = x.abs().float().contiguous().view(torch.int32).flatten() >> SHIFT
        self.counts += torch.bincount(codes, minlength=len(self.counts))

    def quantile(self, name: str, level: float) -> float:
        """Up to which `level` of them lie, as bfloat16 tells them apart: both precisions then agree on who sleeps."""
        if level == 0:
            return 0.0
        below = self.counts.cumsum(0)
        wanted = level * int(below[-1])
        code = int(torch.searchsorted(below, torch.tensor(wanted)))
        before = int(below[code - 1]) if code else 0
        edges = torch.tensor([code << SHIFT, (code + 1) << SHIFT], dtype=torch.int32).view(torch.float32)
        inside = (wanted - before) / max(1, int(self.counts[code]))
        found = float(torch.lerp(edges[0], edges[1], inside).bfloat16())
        if not math.isfinite(found):
            raise CheckpointError(f"the inputs of {name} are not numbers: the model's weights are damaged")
        return found


@torch.inference_mode()
def _magnitudes(model: Cortex, windows: Sequence[Tensor]) -> dict[str, _Magnitudes]:
    """Of each site's inputs, before anything sleeps there."""
    seen: dict[str, _Magnitudes] = {}

    def add(name: str, module: Any, given: tuple[Any, ...]) -> None:
        seen.setdefault(name, _Magnitudes()).add(given[0])

    with _listening(model, add):
        for window in windows:
            model.model(window[None], use_cache=False)
    return seen


@contextmanager
def _listening(model: Cortex, tell: Callable[[str, nn.Module, tuple[Any, ...]], None]) -> Iterator[None]:
    """Within it `tell` hears what every site is given."""
    hooks = [module.register_forward_pre_hook(partial(tell, name)) for name, module in sites_of(model).items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
