"""`grow`: a model becomes larger, and says what it said."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.apps.dialling import left_behind_rows
from pragnosia.apps.restructured import TOKENS, Data, Out, Source, changed, open_source

if TYPE_CHECKING:
    from pragnosia.model.cortex import Cortex

Verb = Callable[[Any], Any]


@answering
def grow(
    source: Source,
    out: Out,
    units: Annotated[
        str | None, typer.Option(help="How many units there are then: 2x, or +8 more in every sparse layer.")
    ] = None,
    twins: Annotated[
        bool, typer.Option("--twins", help="With --units: each is split, and its twins wake together: more work too.")
    ] = False,
    lobe: Annotated[
        str | None, typer.Option(help="With --units +8: they stand in a new lobe of this name, to be silenced as one.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="So many more layers, as +2.")] = None,
    stack: Annotated[
        bool, typer.Option("--stack", help="With --layers: whole copies. What the model says changes at once.")
    ] = False,
    width: Annotated[str | None, typer.Option(help="How much wider, as 1.5x.")] = None,
    rows: Annotated[str | None, typer.Option(help="Rows of long-term memory: 4x, 9x or another square.")] = None,
    data: Data = None,
    seed: Annotated[int, typer.Option(help="The same seed draws the same.")] = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Make a larger model that says what this one says, to train on from there.

    New units sleep until training wakes them, so that a token costs what it cost; new layers and channels say nothing
    yet. Several can be asked for at once. What a model cannot grow in is told in one line.
    """
    verbs = _verbs(units, layers, width, rows, twins=twins, lobe=lobe, stack=stack, seed=seed)
    from pragnosia.errors import ConfigError

    if not verbs:
        raise ConfigError("say what shall grow: --units 2x, --layers +2, --width 1.5x or --rows 4x")
    opened = open_source(source, out, data, TOKENS)

    def change(model: Cortex) -> None:
        for verb in verbs:
            verb(model)

    values, told = changed(opened, out, change)
    kept = values["largest_logit_change"]
    shown = [("grown", f"{source} to {out}"), *told, ("logits", f"{kept:.1e} apart at most")]
    return Answer(values, aligned([*shown, *left_behind_rows(values["not_carried"], source, out)]))


def _verbs(
    units: str | None,
    layers: str | None,
    width: str | None,
    rows: str | None,
    *,
    twins: bool,
    lobe: str | None,
    stack: bool,
    seed: int,
) -> list[Verb]:
    """What shall be done, in order. Raises ConfigError for what is not understood, before anything is loaded."""
    from pragnosia.errors import ConfigError

    if twins and units is None:
        raise ConfigError("--twins says how units grow; give --units 2x with it")
    if lobe is not None and (units is None or twins):
        raise ConfigError("--lobe says where new units stand; give --units +8 with it, and no --twins")
    if stack and layers is None:
        raise ConfigError("--stack says how layers are added; give --layers +2 with it")
    asked = [
        None if units is None else _for_units(units, twins=twins, lobe=lobe, seed=seed),
        None if layers is None else _for_layers(layers, stack=stack, seed=seed),
        None if width is None else _for_width(width, seed),
        None if rows is None else _for_rows(rows, seed),
    ]
    return [verb for verb in asked if verb is not None]


def _for_units(units: str, *, twins: bool, lobe: str | None, seed: int) -> Verb:
    from pragnosia.errors import ConfigError

    factor, more = _amount("--units", units, "2x or +8")
    if twins and (factor is None or factor != int(factor)):
        raise ConfigError(f"--units is {units}; twins are made of every unit alike, as 2x")
    if twins:
        return lambda model: _growth().split_units(model, int(factor or 0), seed=seed)
    return lambda model: _more_units(model, factor, more, lobe=lobe, seed=seed)


def _for_layers(layers: str, *, stack: bool, seed: int) -> Verb:
    from pragnosia.errors import ConfigError

    _, count = _amount("--layers", layers, "+2")
    if count is None:
        raise ConfigError(f"--layers is {layers}; say how many more, as +2")
    return lambda model: _growth().deepen(model, count, stack=stack, seed=seed)


def _for_width(width: str, seed: int) -> Verb:
    from pragnosia.errors import ConfigError

    wider, _ = _amount("--width", width, "1.5x")
    if wider is None:
        raise ConfigError(f"--width is {width}; say how much wider, as 1.5x")
    return lambda model: _growth().widen(model, wider, seed=seed)


def _for_rows(rows: str, seed: int) -> Verb:
    from math import isqrt

    from pragnosia.errors import ConfigError

    many, _ = _amount("--rows", rows, "4x")
    side = 0 if many is None else isqrt(int(many))
    if side * side != many:
        raise ConfigError(f"--rows is {rows}; a row is found by two keys, so give a square, as 4x or 9x")
    return lambda model: _growth().split_rows(model, side, seed=seed)


def _growth() -> Any:
    from pragnosia.plasticity import growth

    return growth


def _more_units(model: Any, factor: float | None, more: int | None, *, lobe: str | None, seed: int) -> None:
    from pragnosia.errors import ConfigError
    from pragnosia.plasticity.growth import add_units, units_of

    had = units_of(model.config).num_units
    if factor is not None:
        wanted = had * factor
        if wanted != int(wanted):
            raise ConfigError(f"--units {factor:g}x of {had} is {wanted:g}; give a factor that makes whole units")
        more = int(wanted) - had
    assert more is not None
    add_units(model, more, lobe=lobe, seed=seed)


def _amount(option: str, text: str, example: str) -> tuple[float | None, int | None]:
    """A factor (2x) or how many more (+2). Raises ConfigError."""
    from pragnosia.errors import ConfigError

    if re.fullmatch(r"\+\d+", text) and int(text) > 0:
        return None, int(text)
    if re.fullmatch(r"\d+(\.\d+)?x", text) and float(text[:-1]) > 1:
        return float(text[:-1]), None
    raise ConfigError(
        f"{option} is {text!r}; expected {example}: a model only grows here (pragnosia prune takes units away)"
    )
