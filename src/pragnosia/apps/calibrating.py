"""`calibrate`: how far exits can be trusted, and what each setting costs and gives; kept beside the model."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.apps.budgeting import bar
from pragnosia.apps.dialling import COSTS, cost_cells, in_columns
from pragnosia.apps.evaluating import Data
from pragnosia.apps.speaking import Model

if TYPE_CHECKING:
    from pragnosia.inference.dial import Dial
    from pragnosia.inference.exits import Exits

_NOTHING = "nothing to dial: the model has no units, no trained exits and no gates, so energy stays 1"


@answering
def calibrate(
    model: Model,
    data: Data,
    agreement: Annotated[
        float, typer.Option(help="Share of the tokens that leave early which must get the full model's word.")
    ] = 0.99,
    layers: Annotated[
        str | None, typer.Option(help="Layers to exit behind, as 2,4; default those the model was trained with.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Of the text, from its beginning; best of held-out text.")] = 8192,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Calibrate a model's exits and its energy dial on a text; generate, chat and eval read what is written beside it.

    exits.json: an exit is the last norm and the output head behind an earlier layer. Half of the text chooses from
    which confidence on a token may leave, the other half says what that gives; and the exit that drafts best is found.
    energy.json: settings of all that the model has to turn (units awake, trained exits, token gates), each with its
    bits per byte on the text and the operations, bytes and joules of a token; those stay that are worth their cost.
    """
    from pragnosia.data.specs import resolve
    from pragnosia.errors import CheckpointError
    from pragnosia.inference.directory import check_speaker

    behind = None if layers is None else _layers(layers)
    check_speaker(model)
    if not model.is_dir():
        raise CheckpointError(f"{model} is a file; exits.json lies in a model directory: import it into one first")
    for source in data:
        resolve(source)
    from pragnosia.apps.speaking import counted
    from pragnosia.data import Joined
    from pragnosia.inference.dial import model_print
    from pragnosia.inference.speaker import Pragnosia
    from pragnosia.measure.dial import calibrate_dial
    from pragnosia.measure.exits import calibrate_exits

    speaker = Pragnosia.from_pretrained(model, speculate=False)
    text = Joined(tuple(resolve(source) for source in data))
    parts = speaker.model, speaker.tokenizer, text
    exits = None
    if speaker.model.config.num_hidden_layers > 1 or behind:
        exits = calibrate_exits(*parts, layers=behind, agreement=agreement, tokens=tokens)
    trained = behind is not None or getattr(speaker.model.config, "exits", None) is not None
    with bar("measuring settings", quiet=as_json, counts=True) as told:
        dial = calibrate_dial(
            *parts,
            counted=counted(speaker),
            name=model_print(model),
            data=data,
            exits=exits if trained and speaker.leaves_early else None,
            tokens=tokens,
            progress=told,
        )
    if exits is not None:
        exits.write(model)
    if dial is not None:
        dial.write(model)
    values = {} if exits is None else asdict(exits)
    lines = [] if exits is None else _table(exits, drafts=speaker.leaves_early)
    if trained and not speaker.leaves_early:
        lines.append(
            "no token leaves early or drafts when it speaks: it runs by its modules; its exits are no part of the dial"
        )
    lines += ["", *_dial_table(dial)] if dial is not None else [_NOTHING]
    return Answer({"model": str(model), "data": data, **values, "dial": None if dial is None else asdict(dial)}, lines)


def _layers(text: str) -> list[int]:
    from pragnosia.errors import ConfigError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--layers is {text!r}; write whole numbers separated by commas, as in 2,4") from None


def _table(found: Exits, *, drafts: bool) -> list[str]:
    lines = [f"{'exit':>4}  {'guesses right':>13}  {'confidence':>10}  {'left':>6}  {'agreed':>6}"]
    for entry in found.exits:
        sure = "never" if entry.confidence is None else f"{entry.confidence:.4f}"
        agreed = "" if entry.agreed is None else f"{entry.agreed:.1%}"
        lines.append(f"{entry.layer:>4}  {entry.guesses_right:>13.1%}  {sure:>10}  {entry.left:>6.1%}  {agreed:>6}")
    depth = f"{found.layers_per_token:.2f} of {found.num_layers} layers per token"
    rows = [("leaving early", f"{found.agreed:.2%} of the words agree, {depth}")]
    if found.draft is not None and drafts:
        draft = found.draft
        held = f"{draft.accepted:.0%} of the drafts hold, {draft.gain:.2f} times fewer bytes per token"
        rows.append(("drafting", f"by {draft.layer} layers while {draft.confidence:.2f} sure: {held}"))
    return [*lines, *aligned(rows)]


def _dial_table(dial: Dial) -> list[str]:
    """Every notch that is worth its cost, dearest first."""
    rows = [in_columns((f"{dial.share(one):.3f}", *cost_cells(one))) + f"  {one.setting}" for one in dial.frontier()]
    header = in_columns(("energy", *COSTS)) + "  setting"
    return [header, *rows, f"per token that is decoded behind {dial.context:.0f} others; joules by {dial.energy_model}"]
