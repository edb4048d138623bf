"""`calibrate`: how far exits can be trusted, and what each setting costs and gives; kept beside the model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.apps.budgeting import bar
from pragnosia.apps.dialling import COSTS, cost_cells, in_columns
from pragnosia.apps.evaluating import Data
from pragnosia.apps.speaking import Model
from pragnosia.units import plural

if TYPE_CHECKING:
    from pragnosia.data import Source
    from pragnosia.inference.dial import Dial, Notch
    from pragnosia.inference.exits import Exits

_CHANCE = 8


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
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of the text, from its beginning; best of held-out text. Default 8192, or what agreement takes."
        ),
    ] = None,
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
    from pragnosia.inference.dial import model_print, nothing_to_turn
    from pragnosia.inference.speaker import Pragnosia
    from pragnosia.measure.dial import calibrate_dial
    from pragnosia.measure.exits import calibrate_exits

    text = Joined(tuple(resolve(source) for source in data))
    tokens = _enough(model, text, tokens, agreement, behind)
    speaker = Pragnosia.from_pretrained(model, speculate=False)
    parts = speaker.model, speaker.tokenizer, text
    exits = None
    if speaker.model.config.num_hidden_layers > 1:
        with bar("reading what exits guess", quiet=as_json, counts=True, lines=True) as told:
            exits = calibrate_exits(*parts, layers=behind, agreement=agreement, tokens=tokens, progress=told)
    trained = behind is not None or getattr(speaker.model.config, "exits", None) is not None
    with bar("measuring settings", quiet=as_json, counts=True, lines=True) as told:
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
    lines += ["", *_dial_table(dial)] if dial is not None else [f"energy stays 1: {nothing_to_turn(model)}"]
    values = {"model": str(model), "data": data, **values, "dial": None if dial is None else asdict(dial)}
    return Answer(values, lines, aside="" if dial is None else _foreign(dial))


def _enough(model: Path, text: Source, tokens: int | None, agreement: float, behind: list[int] | None) -> int:
    """How much is read. Raises UserErrors where that, or what there is, is less than this model takes."""
    from pragnosia.errors import ConfigError, DataError
    from pragnosia.inference.exits import check_layers
    from pragnosia.inference.loading import load_config, load_tokenizer
    from pragnosia.measure.dial import FEWEST
    from pragnosia.measure.exits import TOKENS, needed_tokens
    from pragnosia.measure.passages import opening

    config, needed = load_config(model), needed_tokens(agreement)
    what = f"calibrating to an agreement of {agreement:.10g}"
    check_layers(behind or [], config.num_hidden_layers)
    if config.num_hidden_layers == 1:  # no exit can be there
        turns = config.units is not None or getattr(config, "gates", None) is not None
        needed, what = FEWEST if turns else 0, "measuring settings"
    mend = ", or a lower --agreement" if needed > FEWEST else ""
    if tokens is not None and tokens < needed:
        raise ConfigError(f"--tokens is {tokens}; {what} takes {needed}: give more{mend}")
    if needed:
        tokenizer = load_tokenizer(model, config.vocab_size, config.tokenizer_digest)
        found, _ = opening(tokenizer, config.vocab_size, text.documents(), needed)
        if found < needed:
            raise DataError(f"the text has {found} tokens; {what} takes {needed}: give more text{mend}")
    return max(tokens or TOKENS, needed)


def _foreign(dial: Dial) -> str:
    """That what was measured says little, of a text that is nothing like what the model has learned."""
    bits = dial.whole.bits_per_byte
    if bits <= _CHANCE:
        return ""
    told = f"the model predicts this text worse than chance ({bits:.1f} bits per byte, chance is {_CHANCE}): "
    return f"pragnosia: {told}its energies mean little; calibrate on text like that which it will meet"


def _intents(dial: Dial) -> list[tuple[str, Notch]]:
    from pragnosia.inference.dial import INTENTS

    return [(intent, dial.at(intent)) for intent in INTENTS]


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
        held = f"{draft.accepted:.0%} of the drafts hold, {_gained(draft.gain)}"
        by = f"by {plural(draft.layer, 'layer')} while {draft.confidence:.2f} sure"
        rows.append(("drafting", f"{by}: {held}"))
    return [*lines, *aligned([*rows, *_missed(found)])]


def _gained(gain: float) -> str:
    """What drafting saves, or costs, and what follows from it."""
    from pragnosia.inference.exits import PAYS

    if gain < 1:
        return f"{1 / gain:.2f} times as many bytes per token: it does not pay, so nothing drafts unless asked to"
    fewer = f"{gain:.2f} times fewer bytes per token"
    return fewer if gain >= PAYS else f"{fewer}: too few to pay, so nothing drafts unless asked to"


def _missed(exits: Exits) -> list[tuple[str, str]]:
    """That an exit agreed less often than was asked, where it was checked."""
    low = [one for one in exits.exits if one.agreed is not None and one.agreed < exits.agreement]
    if not low:
        return []
    told = ", ".join(f"{one.agreed:.1%} behind layer {one.layer}" for one in low)
    asked = f"{exits.agreement:.1%} asked for, and on the half of the text that checks {told}"
    return [("agreement", f"{asked}: too little; give more text, or a higher --agreement")]


def _dial_table(dial: Dial) -> list[str]:
    """Every notch that is worth its cost, dearest first, and where the dial is for what people want."""
    rows = [
        in_columns((f"{dial.share(one):.3f}", *cost_cells(one), f"{one.agreed:.1%}")) + f"  {one.setting}"
        for one in dial.frontier()
    ]
    header = in_columns(("energy", *COSTS, "same words")) + "  setting"
    told = f"per token that is decoded behind {dial.context:.0f} others; joules by {dial.energy_model}"
    intents = (f"{intent} {dial.share(notch):.3f} ({notch.setting})" for intent, notch in _intents(dial))
    return [header, *rows, told, f"by intent: {'; '.join(intents)}"]
