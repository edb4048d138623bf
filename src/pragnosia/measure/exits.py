"""Calibrating exits: from which confidence on a token may leave, and which exit drafts best. Nothing is trained.

    agreed(c) = right guesses among those at least c sure / (their number + 1)

An exit's confidence is the smallest c with agreed(c) at least as asked, among the tokens that no exit before it took;
the one added counts as wrong, so that no exit opens on a handful of tokens. Half of the text chooses, the other half
says what the choice gives. What a draft gains is reckoned in bytes of weights, the price of a token at batch 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pragnosia.data.sources import Source
from pragnosia.errors import ConfigError, DataError
from pragnosia.inference.early import LONGEST, READING
from pragnosia.inference.exits import Draft, Exit, Exits, check_layers
from pragnosia.measure.accounting import Account, account, bytes_of, stored
from pragnosia.measure.calibration import cut
from pragnosia.measure.leaving import answers
from pragnosia.measure.scoring import listening
from pragnosia.model.cortex import Cortex

TOKENS, WINDOW, FEWEST = 8192, 512, 512
_CONFIDENCES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_FURTHER = 0.1
"""What each further token of a span costs beside the reading of a weight, as a share of that."""


Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Guesses:
    """One exit's, of every token of a text."""

    right: Bool[Tensor, " N"]
    """The full model's word."""
    sure: Float[Tensor, " N"]


def calibrate_exits(
    model: Cortex,
    tokenizer: PreTrainedTokenizerBase,
    text: Source,
    *,
    layers: Sequence[int] | None = None,
    agreement: float = 0.99,
    tokens: int = TOKENS,
    progress: Progress | None = None,
) -> Exits:
    """Calibrate exits behind `layers` (None: those the model was trained with, or four) on a text's first `tokens`.

    `progress` is told how many of them have been read, and of how many.
    Raises ConfigError for a layer or an agreement that cannot be, DataError for a text that is too short.
    """
    config: Any = model.config
    num_layers, vocabulary = int(config.num_hidden_layers), int(config.vocab_size)
    needed = needed_tokens(agreement)
    chosen = sorted(set(exit_layers(config) if layers is None else layers))
    check_layers(chosen, num_layers)
    if not chosen:
        raise ConfigError(f"the model has {num_layers} layer; an exit needs one behind it")
    length = min(int(config.max_position_embeddings), WINDOW)
    windows = list(cut(tokenizer, text, vocabulary, max(tokens, needed), length))
    found = sum(map(len, windows))
    if found < needed:
        raise DataError(
            f"the text has {found} tokens; calibrating to an agreement of {agreement} takes {needed}: give more text"
        )
    guesses = read_guesses(model, windows, chosen, progress)
    half = found // 2
    exits, agreed, depth = _chosen(guesses, half, agreement, num_layers)
    counted = account(model, precision=stored(model))
    drafts = [
        _simulated(layer, confidence, guess, counted) for layer, guess in guesses.items() for confidence in _CONFIDENCES
    ]
    return Exits(
        num_layers=num_layers,
        vocab_size=vocabulary,
        agreement=agreement,
        tokens=found,
        agreed=agreed,
        layers_per_token=depth,
        exits=exits,
        draft=max(drafts, key=lambda draft: draft.gain),
    )


def needed_tokens(agreement: float) -> int:
    """Of text: half of them choose, and ten of those may be wrong. Raises ConfigError for what is no agreement."""
    if not 0 < agreement < 1:
        raise ConfigError(f"the agreement is {agreement}; it must lie between 0 and 1, as 0.99")
    return max(FEWEST, 2 * math.ceil(10 / (1 - agreement)))


def exit_layers(config: Any) -> list[int]:
    """The exits a model was trained with; of one without, up to four that stand evenly."""
    if getattr(config, "exits", None) is not None:
        return list(config.exits.layers)
    total = int(config.num_hidden_layers)
    return sorted({round(total * part / 5) for part in range(1, 5)} - {0, total})


def read_guesses(
    model: Cortex, windows: Sequence[Tensor], layers: Sequence[int], progress: Progress | None = None
) -> dict[int, Guesses]:
    """By layer: what its exit says of each token, beside what the full model says."""
    parts: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    done, total = 0, sum(map(len, windows))
    with listening(model):
        for window in windows:
            if progress is not None:
                progress(done, total)
            done += len(window)
            output = model.model(window[None].to(model.device), use_cache=False, output_hidden_states=True)
            full = answers(output.hidden_states[-1][0], model.lm_head)[0]
            for layer in layers:
                words, sure = answers(model.model.norm(output.hidden_states[layer])[0], model.lm_head)
                parts[layer].append(((words == full).cpu(), sure.cpu()))
    if progress is not None:
        progress(done, total)
    return {
        layer: Guesses(torch.cat([right for right, _ in some]), torch.cat([sure for _, sure in some]))
        for layer, some in parts.items()
    }


def threshold(guesses: Guesses, agreement: float) -> float | None:
    """The smallest confidence at which so many guesses are right; None where there is none."""
    sure, order = guesses.sure.sort(descending=True)
    count = torch.arange(1, len(sure) + 1)
    fine = guesses.right[order].cumsum(0) / (count + 1) >= agreement
    fine[:-1] &= sure[:-1] > sure[1:]  # equals leave together
    places = fine.nonzero()
    return float(sure[places[-1, 0]]) if len(places) else None


def _chosen(
    guesses: dict[int, Guesses], half: int, agreement: float, num_layers: int
) -> tuple[tuple[Exit, ...], float, float]:
    """The exits by the first half of the tokens; what the second half makes of them: agreement, layers per token."""
    total = len(next(iter(guesses.values())).sure)
    here = torch.ones(total, dtype=torch.bool)  # no exit took them yet
    right, depths = torch.ones(total, dtype=torch.bool), torch.full((total,), num_layers)
    first = torch.arange(total) < half
    exits = []
    for layer, guess in guesses.items():
        some = here & first
        confidence = threshold(Guesses(guess.right[some], guess.sure[some]), agreement)
        goes = here & (guess.sure >= confidence) if confidence is not None else torch.zeros_like(here)
        right[goes], depths[goes] = guess.right[goes], layer
        checked = goes & ~first
        exits.append(
            Exit(
                layer=layer,
                confidence=confidence,
                left=float(checked.sum() / (~first).sum()),
                agreed=float(guess.right[checked].float().mean()) if checked.any() else None,
                guesses_right=float(guess.right.float().mean()),
            )
        )
        here &= ~goes
    return tuple(exits), float(right[~first].float().mean()), float(depths[~first].float().mean())


def _simulated(layer: int, confidence: float, guesses: Guesses, counted: Account) -> Draft:
    """Drafting through a text as `Foresight` does, as if its tokens had been the answer."""
    precision = counted.precision
    prices = [
        (
            bytes_of(
                part.passing * (part.parameters - part.silent_parameters) + (1 - part.passing) * part.heard_parameters,
                precision,
            ),
            bytes_of(part.passing * part.num_awake * part.unit_parameters, precision),
        )
        for part in counted.layers
    ]
    head = bytes_of(counted.head_parameters, precision)
    below, shared = sum(map(sum, prices[:layer])), head + sum(always for always, _ in prices[layer:])
    woken = sum(units for _, units in prices[layer:])  # each token wakes its own
    right, willing = guesses.right.tolist(), (guesses.sure >= confidence).tolist()
    at = drafted = accepted = 0
    spent, limit = 0.0, READING - 1
    while at < len(right):
        count = next((k for k in range(limit) if at + k >= len(right) or not willing[at + k]), limit)
        held = next((k for k in range(count) if not right[at + k]), count)
        spent += (count + 1) * (below + woken) + min(count + 1, limit) * head + shared * (1 + _FURTHER * count)
        drafted, accepted, at = drafted + count, accepted + held, at + held + 1
        if count and held == count >= limit:
            limit = min(limit + READING, LONGEST)
        elif 2 * held < count:
            limit = max(limit - READING, READING - 1)
    plain = (below + woken + shared) * at
    return Draft(layer=layer, confidence=confidence, accepted=accepted / max(drafted, 1), gain=plain / max(spent, 1.0))
