"""`prune`: a mixture loses the units that are worth least."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.apps.budgeting import bar
from pragnosia.apps.dialling import left_behind_rows
from pragnosia.apps.restructured import TOKENS, Data, Out, Source, changed, check_rate, open_source
from pragnosia.units import plural

if TYPE_CHECKING:
    from pragnosia.model.cortex import Cortex


@answering
def prune(
    source: Source,
    out: Out,
    keep: Annotated[
        str | None, typer.Option(help="Of the units: a share, as 0.5, or how many. Not with --by dead.")
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="Who goes: reap (says least when awake), load (wakes least), dead (never woke), "
            "magnitude (smallest weights), or merge (the most alike become one)."
        ),
    ] = "reap",
    data: Data = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Of the text to look on at and learn from; 4096, or what --recover takes.")
    ] = None,
    recover: Annotated[int, typer.Option(min=0, help="Steps of training that make up for the loss.")] = 0,
    learning_rate: Annotated[float | None, typer.Option(help="Of the recovery, at its peak; 2e-4.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Make a smaller model of a mixture: units that are worth least go, and their rows with them.

    Every layer loses as many. What that costs is measured on text held out, where there is a text.
    """
    share = _check_pruning(keep, by, data, recover, learning_rate)
    from pragnosia.training.recovery import BATCH_TOKENS, LEARNING_RATE

    opened = open_source(source, out, data, tokens or max(TOKENS, recover * BATCH_TOKENS))

    def change(model: Cortex) -> None:
        from pragnosia.plasticity.pruning import prune as cut

        cut(model, share, by=by, windows=opened.seen)

    def learn(model: Cortex) -> None:
        from pragnosia.training.recovery import rehearse

        with bar("recovering", quiet=as_json, counts=True) as progress:
            rehearse(model, opened.seen, recover, learning_rate=learning_rate or LEARNING_RATE, progress=progress)

    values, told = changed(opened, out, change, learn if recover else None)
    values |= {"by": by, "recover": recover}
    shown = [
        ("pruned", f"{source} to {out} by {by}, {plural(recover, 'step')} of recovery"),
        ("units", f"{values['units']} in each sparse layer, before {opened.units}"),
        *told,
    ]
    return Answer(values, aligned([*shown, *left_behind_rows(values["not_carried"], source, out)]))


def _check_pruning(
    keep: str | None, by: str, data: list[str] | None, recover: int, learning_rate: float | None
) -> float | int | None:
    """What stays. Raises ConfigError for what can be said before torch is loaded."""
    from pragnosia.errors import ConfigError, unknown_name

    ways = ("reap", "load", "dead", "magnitude", "merge")
    if by not in ways:
        raise ConfigError(unknown_name("--by", by, ways))
    if by in ("reap", "load", "dead") and not data:
        raise ConfigError(f"--by {by} looks on while units work, on a text: give --data TEXT, or --by magnitude")
    if recover and not data:
        raise ConfigError("--recover needs a text to train on: --data TEXT")
    check_rate(learning_rate, recover)
    if by == "dead":
        if keep is not None:
            raise ConfigError("--by dead takes out who never woke, not a share; leave --keep out")
        return None
    if keep is None:
        raise ConfigError("say how many units stay: --keep 0.5 for a share, or --keep 8")
    try:
        return int(keep) if re.fullmatch(r"\d+", keep) else float(keep)
    except ValueError as error:
        raise ConfigError(f"--keep is {keep!r}; expected a share, as 0.5, or a number of units, as 8") from error
