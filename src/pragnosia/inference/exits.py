"""Exits as they were calibrated: which layers' guesses can be trusted, and from which confidence on. `exits.json`.

It lies beside the model and is written whole or not at all (measure/exits.py makes it). torch is not loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pragnosia.errors import CheckpointError, ConfigError, unknown_name
from pragnosia.inference.beside import read_beside, write_beside
from pragnosia.model.setting import MEMORIES, WHOLE, Setting

EXITS = "exits.json"
PAYS = 1.1
"""Of a draft's gain: what is less is lost again in the calls."""


@dataclass(frozen=True, kw_only=True)
class Exit:
    """What is known of one layer's guesses."""

    layer: int
    """Layers before it."""
    confidence: float | None
    """Probability of its likeliest word from which on a token may leave; None: never."""
    left: float
    """Share of all tokens that left here, on the text's second half."""
    agreed: float | None
    """Share of them whose word was the full model's."""
    guesses_right: float
    """Share of all tokens for which its likeliest word was the full model's, however sure it was."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The exit that drafts best."""

    layer: int
    confidence: float
    """Below it drafting ends."""
    accepted: float = 0.0
    """Share of its drafts that held, on the text."""
    gain: float = 1.0
    """Bytes of weights that plain decoding reads for a token, over those read so."""


@dataclass(frozen=True, kw_only=True)
class Exits:
    """A calibration."""

    num_layers: int
    vocab_size: int
    agreement: float
    """What was asked for: of the tokens that leave at an exit, this share gets the full model's word."""
    tokens: int
    """Of the text, half of them to choose by and half to check with."""
    agreed: float
    """Share of the checked tokens that got the full model's word, those among them that went all the way."""
    layers_per_token: float
    exits: tuple[Exit, ...]
    draft: Draft | None

    def write(self, folder: Path) -> None:
        """Beside the model. Raises OSError."""
        write_beside(folder / EXITS, asdict(self))

    @property
    def leave(self) -> tuple[tuple[int, float], ...]:
        """The exits that may be taken, with their confidence."""
        return tuple((entry.layer, entry.confidence) for entry in self.exits if entry.confidence is not None)


def read_exits(folder: str | Path, num_layers: int | None = None, vocab_size: int | None = None) -> Exits | None:
    """The calibration beside a model, None where there is none. Raises CheckpointError for a damaged or another's."""
    path = Path(folder) / EXITS
    found = read_beside(path, _exits)
    if found is None:
        return None
    for name, ours, theirs in (
        ("layers", num_layers, found.num_layers),
        ("tokens in the vocabulary", vocab_size, found.vocab_size),
    ):
        if ours is not None and ours != theirs:
            raise CheckpointError(f"{path} is of a model with {theirs} {name}, this one has {ours}; calibrate again")
    return found


def _exits(values: Mapping[str, Any]) -> Exits:
    """Checked, since the layers become addresses. Raises TypeError, ValueError, KeyError."""
    draft = values["draft"]
    found = Exits(
        **{**values, "exits": tuple(Exit(**entry) for entry in values["exits"])}
        | {"draft": None if draft is None else Draft(**draft)}
    )
    whole: tuple[Any, ...] = (found.num_layers, found.vocab_size)
    if not all(isinstance(value, int) and value > 0 for value in whole):
        raise ValueError(f"num_layers and vocab_size are {whole}")
    layers = [entry.layer for entry in found.exits]
    check_layers([*layers, *([found.draft.layer] if found.draft else [])], found.num_layers)
    if layers != sorted(set(layers)):
        raise ValueError(f"its layers are {layers}, not ascending")
    sure: list[Any] = [*(entry.confidence for entry in found.exits), *([found.draft.confidence] if found.draft else [])]
    if not all(value is None or (isinstance(value, int | float) and 0 <= value <= 1) for value in sure):
        raise ValueError(f"its confidences are {sure}")
    return found


def check_layers(layers: Any, num_layers: int) -> None:
    """Raise ConfigError unless an exit can stand after each of these layers."""
    for layer in layers:
        if not isinstance(layer, int) or isinstance(layer, bool) or not 0 < layer < num_layers:
            raise ConfigError(
                f"an exit after layer {layer!r} is none: the model has {num_layers} layers, "
                f"and exits stand after layer 1 to {num_layers - 1}"
            )


def chosen_exits(
    exits: Exits | None, folder: str | Path, *, speculate: bool | None, confidence: str | None, memory: str = "exact"
) -> tuple[Draft | None, Setting]:
    """What a user's wishes come to: the exit that drafts, if any, and where tokens may leave.

    `speculate` None speculates where a calibration says that it pays: the words are the same. `confidence` is
    `calibrated`, or a number for all exits. Raises ConfigError for wishes that cannot be, CheckpointError where nothing
    was calibrated.
    """
    if memory not in MEMORIES:
        raise ConfigError(unknown_name("memory of exits", memory, MEMORIES))
    if memory != "exact" and confidence is None:
        raise ConfigError(
            f"exit memory {memory!r} is of tokens that leave early, and none does: give an exit confidence, too "
            "(--exit-confidence calibrated), or leave it out"
        )
    if confidence is not None and speculate:
        raise ConfigError("speculating and leaving early exclude each other; give one of them")
    if exits is None:
        if speculate or confidence is not None:
            raise CheckpointError(
                f"{folder} has no calibrated exits; calibrate them first: pragnosia calibrate {folder} --data TEXT"
            )
        return None, WHOLE
    if confidence is not None:
        leave = exits.leave
        if confidence != "calibrated":
            leave = tuple((entry.layer, _share(confidence)) for entry in exits.exits)
        return None, Setting(leave=leave, memory=memory) if leave else WHOLE  # type: ignore[arg-type]
    pays = exits.draft is not None and exits.draft.gain >= PAYS
    return exits.draft if speculate or (speculate is None and pays) else None, WHOLE


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise ConfigError(f"the exit confidence is {text}; it must lie in (0, 1], or be `calibrated`")
    return value
