"""Measuring a dial: settings of the mechanisms that a model has, each read on one text. Nothing is trained.

Every setting reads the same text as it would decode it (evaluation.py, leaving.py), and costs what one token would
that is decoded alone (decoded.py), so notches differ by the setting and by nothing else. First each mechanism is turned
alone; levels that are worth their cost there are then combined with those of the others. Notches stay that nothing as
cheap predicts better than: among all, among those at which all layers speak, for where no token can leave early, and
among both those that say nearly what the whole model says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pragnosia.data.sources import Source
from pragnosia.errors import DataError
from pragnosia.inference.dial import Dial, Notch, frontier, nearly_whole
from pragnosia.inference.exits import Exits
from pragnosia.measure.accounting import Account
from pragnosia.measure.decoded import decoded
from pragnosia.measure.energy import EnergyModel, energy_model
from pragnosia.measure.evaluation import Evaluation, evaluate
from pragnosia.measure.passages import opening
from pragnosia.model.cortex import Cortex
from pragnosia.model.setting import WHOLE, Setting
from pragnosia.model.thalamus import Thalamus, ThresholdThalamus

TOKENS, WINDOW, FEWEST = 4096, 512, 512
_MORE = 16  # tokens that are read beside: a text that is cut at the end of one is not always split as before
_AWAKE = (1.0, 0.75, 0.5, 0.25, 0.125)
_GATES = (0.75, 0.5)
_CONFIDENCES = (0.8, 0.5, 0.3, 0.15, 0.05)

Told = Callable[[int, int], None]
"""Settings read, of how many."""


def calibrate_dial(  # noqa: PLR0913  what a dial is made of
    model: Cortex,
    tokenizer: PreTrainedTokenizerBase,
    text: Source,
    *,
    counted: Account,
    name: str,
    data: Sequence[str] = (),
    exits: Exits | None = None,
    tokens: int = TOKENS,
    progress: Told | None = None,
) -> Dial | None:
    """The dial of a model on the first `tokens` of a text, about; None for a model with nothing to dial.

    `counted` is the whole model's account, `name` its print, `exits` those to leave by, None where no token can leave.
    Raises DataError for a text that is too short, CheckpointError for a model that computes no numbers.
    """
    turns = mechanisms(model, exits)
    if not any(turns):
        return None
    context = min(int(model.config.max_position_embeddings), WINDOW)
    joules = energy_model(device=model.device.type)
    wanted = max(min(tokens, TOKENS), FEWEST) + _MORE
    found, limit = opening(tokenizer, int(model.config.vocab_size), text.documents(), wanted)
    if found < FEWEST:
        raise DataError(f"the text has {found} tokens; measuring settings takes {FEWEST}: give more text")
    notches, whole = dict[Setting, Notch](), list[Tensor]()
    alone = [WHOLE, *(setting for turn in turns for setting in turn)]

    def measure(settings: Sequence[Setting], total: int) -> None:
        for setting in settings:
            if progress is not None:
                progress(len(notches), total)
            words: list[Tensor] = whole if setting == WHOLE else []
            read = evaluate(model, tokenizer, text, words=words, setting=setting, **windows)
            agreed = float((torch.cat(words) == torch.cat(whole)).double().mean())
            notches[setting] = notch(setting, read, counted, joules, agreed)
            measured.update(tokens=read.tokens, context=seen(read))

    measured: dict[str, Any] = {}
    windows: dict[str, Any] = {"context": context, "stride": context, "max_bytes": limit}
    measure(alone, len(alone) + 1)
    worth = [[one.setting for one in frontier(notches[setting] for setting in (WHOLE, *turn))] for turn in turns]
    both = [setting for setting in map(_joined, product(*worth)) if setting not in notches]
    measure(both, len(alone) + len(both))
    if progress is not None:
        progress(len(notches), len(notches))
    every = list(notches.values())
    speaking = [one for one in every if not one.setting.leave]
    nearly = [[one for one in some if nearly_whole(one, every[0])] for some in (every, speaking)]
    kept = [one for some in (every, speaking, *nearly) for one in frontier(some)]
    return Dial(
        model=name,
        num_layers=len(counted.layers),
        energy_model=joules.name,
        data=tuple(data),
        notches=tuple(dict.fromkeys(kept)),
        **measured,
    )


def notch(setting: Setting, read: Evaluation, counted: Account, joules: EnergyModel, agreed: float) -> Notch:
    """One setting, from a text read at it; `agreed` is the share of its words that are the whole model's."""
    return Notch(agreed=agreed, **figures(setting, read, counted, joules))


def figures(setting: Setting, read: Evaluation, counted: Account, joules: EnergyModel) -> dict[str, Any]:
    """Of one setting, by their names in a notch: what reading a text at it says by itself."""
    cost = decoded(counted, read, setting, seen(read))
    return {
        "setting": setting,
        "bits_per_byte": read.bits_per_byte,
        "operations_per_token": cost.operations,
        "bytes_per_token": cost.num_bytes,
        "joules_per_token": joules.estimate(cost.operations, cost.num_bytes, counted.arithmetic).joules,
        "layers_used": cost.layers_used,
        "units_awake": cost.units_awake,
    }


def seen(read: Evaluation) -> float:
    """Tokens that a scored one looks back on, itself included: mean over a whole window's."""
    return read.context - (read.stride - 1) / 2


def mechanisms(model: Cortex, exits: Exits | None) -> list[list[Setting]]:
    """What can be turned, each alone: fewer units, fewer tokens past gates, exits. Empty where a model has none."""
    gates = _GATES if getattr(model.config, "gates", None) is not None else ()
    leaves = [] if exits is None else _leaves(exits)
    return [
        [Setting(awake=awake) for awake in _shares(model)],
        [Setting(gates=gate) for gate in gates],
        # what is remembered exactly saves no arithmetic
        [Setting(leave=leave, memory="propagated") for leave in leaves],
    ]


def _joined(settings: tuple[Setting, ...]) -> Setting:
    """One of each mechanism, together."""
    units, gates, exits = settings
    return Setting(awake=units.awake, gates=gates.gates, leave=exits.leave, memory=exits.memory)


def _shares(model: Cortex) -> list[float]:
    """Of units, those that wake different numbers of them."""
    routers = [module for module in model.modules() if isinstance(module, Thalamus)]
    found: dict[tuple[float, ...], float] = {}
    for share in _AWAKE:
        counts = [share if isinstance(r, ThresholdThalamus) else float(r.num_awake(share)) for r in routers]
        found.setdefault(tuple(counts), share)
    return list(found.values())[1:]


def _leaves(exits: Exits) -> list[tuple[tuple[int, float], ...]]:
    """Exits as they were calibrated, and at some confidences all of them, or the first alone: each asks the head."""
    layers = [entry.layer for entry in exits.exits]
    found = [exits.leave]
    for confidence in _CONFIDENCES:
        found += [tuple((layer, confidence) for layer in layers), ((layers[0], confidence),)]
    return [leave for leave in dict.fromkeys(found) if leave]
