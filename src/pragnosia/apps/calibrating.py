"""`calibrate`: which layers may answer, and from which confidence on, measured on a text and kept beside the model."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.apps.evaluating import Data
from pragnosia.apps.speaking import Model

if TYPE_CHECKING:
    from pragnosia.inference.exits import Exits


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
    """Calibrate a model's exits on a text; generate, chat and eval read what is written: exits.json beside the model.

    An exit is the last norm and the output head behind an earlier layer. Half of the text chooses from which confidence
    on a token may leave, the other half says what that gives; and the exit that drafts best is found.
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
    from pragnosia.data import Joined
    from pragnosia.inference.speaker import Pragnosia
    from pragnosia.measure.exits import calibrate_exits

    speaker = Pragnosia.from_pretrained(model, speculate=False)
    text = Joined(tuple(resolve(source) for source in data))
    found = calibrate_exits(speaker.model, speaker.tokenizer, text, layers=behind, agreement=agreement, tokens=tokens)
    found.write(model)
    return Answer({"model": str(model), "data": data, **asdict(found)}, _table(found))


def _layers(text: str) -> list[int]:
    from pragnosia.errors import ConfigError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--layers is {text!r}; write whole numbers separated by commas, as in 2,4") from None


def _table(found: Exits) -> list[str]:
    lines = [f"{'exit':>4}  {'guesses right':>13}  {'confidence':>10}  {'left':>6}  {'agreed':>6}"]
    for entry in found.exits:
        sure = "never" if entry.confidence is None else f"{entry.confidence:.4f}"
        agreed = "" if entry.agreed is None else f"{entry.agreed:.1%}"
        lines.append(f"{entry.layer:>4}  {entry.guesses_right:>13.1%}  {sure:>10}  {entry.left:>6.1%}  {agreed:>6}")
    depth = f"{found.layers_per_token:.2f} of {found.num_layers} layers per token"
    rows = [("leaving early", f"{found.agreed:.2%} of the words agree, {depth}")]
    if found.draft is not None:
        draft = found.draft
        held = f"{draft.accepted:.0%} of the drafts hold, {draft.gain:.2f} times fewer bytes per token"
        rows.append(("drafting", f"by {draft.layer} layers while {draft.confidence:.2f} sure: {held}"))
    return [*lines, *aligned(rows)]
