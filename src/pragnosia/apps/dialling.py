"""The dial's options: what is refused before anything is loaded, where it is set, and what a budget of joules does."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps.budgeting import amount_of
from pragnosia.apps.leaving import check_early
from pragnosia.units import format_bytes, format_count, format_joules

if TYPE_CHECKING:
    from pragnosia.inference.decode import Decoder
    from pragnosia.inference.dial import Notch, Wish
    from pragnosia.inference.speaker import Pragnosia
    from pragnosia.measure.frontier import Point
    from pragnosia.measure.meter import EnergyMeter
    from pragnosia.measure.purse import Purse
    from pragnosia.model.setting import Setting

_DIAL = (
    "In (0, 1]: the share of the whole model's joules per token that one may cost, by the setting that `calibrate` "
    "found best; or what for: draft, answer, think"
)
Energy = Annotated[str, typer.Option(help=f"{_DIAL}.")]
Energies = Annotated[str, typer.Option(help=f"{_DIAL}. Several, as in 1,0.5,0.2, are set side by side.")]
Awake = Annotated[
    float | None,
    typer.Option(help="Units alone, calibrated or not: in (0, 1], the share of the usual number that wakes."),
]
EnergyBudget = Annotated[
    str | None,
    typer.Option(
        help="What all may cost, as in 50J or 200mJ: the dial goes down so that it lasts; speech ends with it."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What was asked for, checked."""

    energies: tuple[Wish, ...]
    awake: float | None
    early: Mapping[str, Any]
    """For `open_speaker`."""


def check_wishes(
    model: Path,
    energy: str,
    awake: float | None = None,
    speculate: bool | None = None,
    exit_confidence: str | None = None,
    exit_memory: str = "exact",
) -> Wishes:
    """Several energies are separated by commas. Raises ConfigError, CheckpointError for wishes that cannot be."""
    from pragnosia.errors import ConfigError
    from pragnosia.inference.dial import needed_dial
    from pragnosia.inference.directory import turnable
    from pragnosia.model.setting import Setting

    energies = tuple(as_wish(part) for part in energy.split(","))
    if awake is not None:
        Setting(awake=awake)
    alone = awake is not None or exit_confidence is not None
    if awake is not None and "units" not in turnable(model):
        raise ConfigError(f"--awake is a share of units, and {model} has none: it is dense; leave --awake out")
    if energies != (1.0,) and alone:
        raise ConfigError("--energy sets all there is to set; leave --awake and --exit-confidence out, or --energy")
    early = check_early(model, speculate, exit_confidence, exit_memory)
    if any(one not in (1, "think") for one in energies):
        needed_dial(model)
    return Wishes(energies=energies, awake=awake, early=early)


def as_wish(text: str) -> Wish:
    """An energy as people write it. Raises ConfigError."""
    from pragnosia.inference.dial import check_energy

    try:
        wish: Wish = float(text)
    except ValueError:
        wish = text.strip()
    check_energy(wish)
    return wish


def set_to(speaker: Pragnosia, wishes: Wishes, wish: Wish | None = None) -> Setting:
    """The setting for a wish, the only one there is unless given; that none is so cheap is told on stderr.

    Raises ConfigError as `Pragnosia.turned`, and where tokens would leave early and speculate.
    """
    alone = None if wishes.awake is None else replace(speaker.setting, awake=wishes.awake)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        setting = speaker.turned(wishes.energies[0] if wish is None else wish, alone)
    tell(told)
    if setting.leave and wishes.early["speculate"]:
        from pragnosia.errors import ConfigError

        raise ConfigError(f"at this energy tokens leave early ({setting}), which excludes --speculate; leave it out")
    return setting


def tell(told: list[warnings.WarningMessage]) -> None:
    """Warnings, for people: a line each."""
    for warning in told:
        print(f"pragnosia: {warning.message}", file=sys.stderr)


def setting_values(speaker: Pragnosia, setting: Setting) -> dict[str, Any]:
    """For JSON: what it costs of the whole model's energy (null where nobody measured), and if less, what it is."""
    from pragnosia.model.setting import WHOLE

    if setting == WHOLE:
        return {"energy": 1.0}
    dial = speaker.dial
    shares = [] if dial is None else [dial.share(one) for one in dial.notches if one.setting == setting]
    return {"energy": shares[0] if shares else None, "setting": setting.write()}


def left_behind(source: Path) -> list[str]:
    """The calibrations beside a model, which another one that is made of it does not get: its weights are others."""
    from pragnosia.inference.dial import ENERGY
    from pragnosia.inference.exits import EXITS

    return [name for name in (EXITS, ENERGY) if (source / name).is_file()]


def left_behind_rows(names: list[str], source: Path, out: Path | str) -> list[tuple[str, str]]:
    """The same for people: what to do."""
    told = f"no: {' and '.join(names)} of {source} are its alone; run: pragnosia calibrate {out} --data TEXT"
    return [("calibrated", told)] if names else []


COSTS = ("bits/byte", "awake", "layers", "operations", "bytes", "joules")


def cost_cells(one: Notch | Point) -> tuple[str, ...]:
    """What a setting gives and what a token of it costs, under the headings COSTS."""
    return (
        f"{one.bits_per_byte:.4f}",
        f"{one.units_awake:.2f}" if one.units_awake else "-",  # none there are
        f"{one.layers_used:.2f}",
        format_count(one.operations_per_token),
        format_bytes(one.bytes_per_token),
        format_joules(one.joules_per_token),
    )


def in_columns(cells: Iterable[str]) -> str:
    """A row of a table of settings."""
    return "".join(f"{cell:>12}" for cell in cells)


def check_budget(text: str | None, speculate: bool | None, exit_confidence: str | None) -> float | None:
    """A budget of joules as people write it. Raises ConfigError."""
    from pragnosia.errors import ConfigError
    from pragnosia.units import parse_joules

    if text is None:
        return None
    if speculate or exit_confidence is not None:
        raise ConfigError(
            "--energy-budget counts token by token and chooses the exits itself; leave --speculate and "
            "--exit-confidence out"
        )
    joules = amount_of("--energy-budget", text, parse_joules, "50J")
    if text.strip()[-1].isdigit() or text.strip()[-1] == ".":
        raise ConfigError(f"--energy-budget is {text} of what? Write a unit, as in {text.strip()}J or {text.strip()}mJ")
    return joules


def open_purse(joules: float | None, speaker: Pragnosia, decoder: Decoder, meter: EnergyMeter) -> Purse | None:
    """What an answer or a talk may cost, where that is bounded."""
    if joules is None:
        return None
    from pragnosia.apps.speaking import counted
    from pragnosia.measure.energy import energy_model
    from pragnosia.measure.purse import Purse

    notches = [] if speaker.dial is None else speaker.dial.frontier(leaving=speaker.leaves_early)
    return Purse(joules, decoder, counted(speaker), energy_model(device=speaker.model.device.type), notches, meter)


def purse_line(purse: Purse) -> str:
    """What is left of a budget, for people."""
    spent = f"{format_joules(purse.spent)} of {format_joules(purse.joules)} are spent"
    if not purse.notches:
        return f"[{spent}; not calibrated, so the dial stayed]"
    return f"[{spent}; the dial is at: {purse.decoder.setting}]"
