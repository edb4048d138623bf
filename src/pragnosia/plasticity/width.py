"""Wider: more channels, heads and hidden neurons, and the function stays.

    x' = [x, 0]      norm'(x') = x' / sqrt(sum x^2 / (f D) + eps / f) * w / sqrt(f) = [norm(x), 0]

New channels carry nothing yet: nobody writes to them, so that whoever reads them may do so as drawn, and their first
slopes are those of a fresh model. New heads and new hidden neurons are drawn, and nobody hears them: what they write by
is zero. The norms' scale takes back that a mean over more channels is smaller, exactly. Zero-padded growth of width as
in Gesmundo & Maile 2023, arXiv 2308.06103.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from pragnosia.errors import ConfigError
from pragnosia.kernels.activations import ACTIVATIONS
from pragnosia.model.bank import NEWBORN, Bank
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex, PlainCortex
from pragnosia.model.feed_forward import FeedForward
from pragnosia.model.norm import RMSNorm
from pragnosia.plasticity.depth import stream_writers
from pragnosia.plasticity.origin import Amend, Axis, Change, Origin
from pragnosia.plasticity.transplant import changed, check_whole, shapes, transplant

_ALSO_WRITE = ("model.embed_tokens.weight", "model.hippocampus.rows")


def widen(model: Cortex, factor: float, *, seed: int = 0) -> Change:
    """`factor` times as many channels; hidden neurons too, and heads where they divide. The function stays.

    Raises ConfigError.
    """
    check_whole(model)
    config = model.config
    shape = widened(config, factor)
    had, has = shapes(config), shapes(shape)
    channels, made = shapes(_channels(config, factor)), PlainCortex.unfilled(shape)
    f = shape.hidden_size / config.hidden_size
    writers = {*stream_writers(made), *_ALSO_WRITE}
    norms = {f"{name}.weight" for name, module in made.named_modules() if isinstance(module, RMSNorm)}
    parts = _parts(made)
    origins = {}
    for name, before in had.items():
        grown = [dim for dim, (old, new) in enumerate(zip(before.shape, has[name].shape, strict=True)) if old != new]
        axes = tuple(
            # channels lie side by side, hidden neurons perhaps in parts
            _appended(dim, before.shape[dim], has[name].shape[dim],
                      parts(name) if channels[name].shape[dim] == before.shape[dim] else 1)
            for dim in grown
        )  # fmt: skip
        if name in norms and grown:
            origins[name] = Origin(name, axes, scale=1 / math.sqrt(f), amend=_mean(axes))
        elif _is_normed(config, name):
            origins[name] = Origin(name, axes, scale=1 / math.sqrt(f))
        elif grown:
            origins[name] = Origin(name, axes, silent=name in writers)
    return transplant(model, shape, origins, what="widen", seed=seed)


def widened(config: PragnosiaConfig, factor: float) -> PragnosiaConfig:
    """The configuration that much wider. Raises ConfigError where that is no whole number of channels or neurons."""
    shape, share = _channels(config, factor), _exact(factor)
    changes: dict[str, Any] = {}
    heads = config.attention
    grown = (heads.num_heads * share, heads.num_key_value_heads * share)
    if all(number.denominator == 1 for number in grown) and heads.qk_norm != "full" and config.dendrites is None:
        changes["attention"] = replace(heads, num_heads=int(grown[0]), num_key_value_heads=int(grown[1])).write()
    if config.feed_forward is not None:
        width = _whole("feed_forward.width", config.feed_forward.width, share)
        changes["feed_forward"] = replace(config.feed_forward, width=width).write()
    if config.experts is not None:
        width = _whole("experts.unit_width", config.experts.unit_width, share)
        changes["experts"] = replace(config.experts, unit_width=width).write()
    if config.lif is not None:
        changes["lif"] = replace(config.lif, width=_whole("lif.width", config.lif.width, share)).write()
    return changed(shape, **changes)


def _channels(config: PragnosiaConfig, factor: float) -> PragnosiaConfig:
    """With more channels alone."""
    share = _exact(factor)
    if config.attention.qk_norm == "head" and config.attention.clip_qkv is not None:
        raise ConfigError("a model that clips what its heads' norm reads cannot be widened: the clip would not scale")
    width = _whole("hidden_size", config.hidden_size, share)
    return changed(config, hidden_size=width, rms_norm_eps=config.rms_norm_eps * config.hidden_size / width)


def _exact(factor: float) -> Fraction:
    if not (math.isfinite(factor) and factor > 1):
        raise ConfigError(f"cannot widen by {factor}; give a number greater than 1, as 1.5")
    return Fraction(factor).limit_denominator(1 << 16)


def _whole(name: str, size: int, share: Fraction) -> int:
    wide = size * share
    if wide.denominator != 1:
        raise ConfigError(
            f"{name} is {size}, and {float(share):g} times that is {float(wide):g}; choose a factor that makes it "
            "whole, as 1.5 or 2"
        )
    return int(wide)


def _is_normed(config: PragnosiaConfig, name: str) -> bool:
    """Whether a norm with the smaller eps reads what this makes: it has to be smaller, too."""
    return config.attention.qk_norm is not None and (".q_proj." in name or ".k_proj." in name) and "slots" not in name


def _parts(made: nn.Module) -> Callable[[str], int]:
    """Of how many equal stretches of hidden neurons the rows of a tensor are."""
    known: dict[str, int] = {}
    for prefix, module in made.named_modules():
        if isinstance(module, Bank):
            count = ACTIVATIONS[module.activation].num_parts
            known |= {f"{prefix}.{name}": count for name in ("up", "up_bias")}
        elif isinstance(module, FeedForward):
            known |= {f"{prefix}.up.{name}": module.activation.num_parts for name in ("weight", "bias")}
    return lambda name: known.get(name, 1)


def _appended(dim: int, old: int, new: int, parts: int) -> Axis:
    """Newborns behind each of `parts` equal stretches."""
    was, now = old // parts, new // parts
    source = [part * was + place if place < was else NEWBORN for part in range(parts) for place in range(now)]
    return Axis.of(dim, source)


def _mean(axes: tuple[Axis, ...]) -> Amend:
    """A new channel's scale is that of the others."""

    def amend(now: Tensor, generator: torch.Generator) -> None:
        for axis in axes:
            new = (axis.source == NEWBORN).to(now.device)
            now[new] = now[~new].mean()

    return amend
