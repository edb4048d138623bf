"""Speaking with fewer layers: its options, what is refused before anything is loaded, and what is told afterwards."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pragnosia.inference.decode import Decoder
    from pragnosia.inference.speaker import Pragnosia

Speculate = Annotated[
    bool | None,
    typer.Option(
        "--speculate/--no-speculate",
        help="Draft with the first layers, judge with the others: the same words. Default: where calibration says it "
        "pays.",
    ),
]
ExitConfidence = Annotated[
    str | None,
    typer.Option(
        help="Let a token leave at the first exit that gives its likeliest word this probability, in (0, 1], or "
        "`calibrated`; of exits that `calibrate` measured. It may say other words."
    ),
]
ExitMemory = Annotated[
    str,
    typer.Option(
        help="With --exit-confidence: `exact`, the layers above catch up when a token goes deep; or `propagated`, they "
        "remember what the exit saw, which is cheap and not exact."
    ),
]


def check_early(
    model: Path, speculate: bool | None, exit_confidence: str | None, exit_memory: str = "exact"
) -> dict[str, Any]:
    """The options for `open_speaker`. Raises ConfigError, CheckpointError for wishes that cannot be."""
    from pragnosia.inference.exits import chosen_exits, read_exits

    found = read_exits(model) if model.is_dir() else None
    chosen_exits(found, model, speculate=speculate, confidence=exit_confidence, memory=exit_memory)
    return {"speculate": speculate, "exit_confidence": exit_confidence, "exit_memory": exit_memory}


def tell_stuck(speaker: Pragnosia, early: Mapping[str, Any]) -> None:
    """On stderr, that every layer will speak for every token, though something else was asked for."""
    if (early["speculate"] or early["exit_confidence"] is not None) and not speaker.leaves_early:
        print(
            "pragnosia: this model speaks by its modules (an adapter, a mixer of its own, a GPU): no token drafts or "
            "leaves early, all layers speak",
            file=sys.stderr,
        )


def early_values(decoder: Decoder) -> dict[str, Any]:
    """What came of it, for JSON; nothing where every token passed every layer."""
    tally = decoder.tally
    if not tally.tokens:
        return {}
    values: dict[str, Any] = {"layers_per_token": tally.layers_per_token}
    if tally.left:
        values["left_after_layer"] = {str(layer): tally.left[layer] for layer in sorted(tally.left)}
    else:
        values |= {"drafted": tally.drafted, "drafts_accepted": tally.accepted / max(tally.drafted, 1)}
    return values


def early_line(values: dict[str, Any], num_layers: int) -> str:
    """The same for people."""
    layers = f"{values['layers_per_token']:.2f} of {num_layers} layers computed per token"
    if "drafted" in values:
        return f"[{layers}; {values['drafts_accepted']:.0%} of {values['drafted']} drafted tokens held]"
    told = ", ".join(f"{count} after {layer}" for layer, count in values["left_after_layer"].items())
    return f"[{layers}; left: {told}]"
