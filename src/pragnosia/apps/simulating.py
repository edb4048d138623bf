"""`simulate` and `raster`: a spiking network, wired in a file, is run: how fast it went, what it looked like."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps import spikes
from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.errors import ConfigError
from pragnosia.units import format_bytes, format_count, format_joules, plural

if TYPE_CHECKING:
    from pragnosia.measure.spiking import SpikingCost
    from pragnosia.spiking.modulation import Levels
    from pragnosia.spiking.regions import Brain

Config = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="A brain wired in YAML, as configs/neurogen.yaml, or a folder with one (docs/spiking.md).",
    ),
]
DriveOption = Annotated[str, typer.Option("--drive", help="What neurons are given from outside: constant or noise.")]
Seed = Annotated[int | None, typer.Option(help="Another wiring and other noise; default: the file's.")]
Level = Annotated[
    list[str] | None,
    typer.Option(
        "--level",
        help="NAME=LEVEL of a modulator (dopamine, serotonin, noradrenaline, acetylcholine), 1 is rest. Repeatable.",
    ),
]


@answering
def simulate(
    config: Config,
    steps: Annotated[int, typer.Option(min=1, help="Steps to take, each of the file's dt_ms.")] = 1000,
    drive: DriveOption = "constant",
    level: Level = None,
    threads: Annotated[int, typer.Option(min=1, help="Regions advanced side by side; the spikes are the same.")] = 1,
    seed: Seed = None,
    learn: Annotated[
        bool, typer.Option("--learn", help="Projections with a `plasticity` change by it; slower, spike by spike.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="With --learn: a folder to make, with the brain as it has become; simulate and raster run it."
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Run a spiking network and say how fast it went, how often its regions fired and what that costs.

    A network with a population that never fires, or in every step it can, is an error once it has run: one
    line says why.
    """
    from pragnosia.measure.spiking import spiking_cost
    from pragnosia.spiking.health import check_alive, mean_rates_hz
    from pragnosia.spiking.running import run

    if out is not None:
        _check_out(out, learn=learn)
    levels = _levels(level)
    brain = _brain(config, drive, seed, levels)
    changes: list[dict[str, Any]] = []
    state = brain.begin()
    _, state = run(brain, state, 1, threads=threads, consume=True)  # builds and loads the kernel, pages the state in
    state = brain.begin()
    if learn:
        from pragnosia.learning.plasticity import changed
        from pragnosia.learning.plasticity import learn as learning

        begun = _brain(config, drive, seed)
        started = time.perf_counter()
        activity, learned, _, state = learning(begun, state, steps, levels=levels, threads=threads)
        seconds = time.perf_counter() - started
        changes = changed(begun, learned)
        if out is not None:
            keep_brain(out, learned)
    else:
        started = time.perf_counter()
        activity, state = run(brain, state, steps, threads=threads, consume=True)
        seconds = time.perf_counter() - started
    check_alive(brain, activity)
    rates, cost = mean_rates_hz(brain, activity), spiking_cost(brain, activity)
    fired = int(activity.counts.sum())
    values: dict[str, Any] = {
        "config": config.name,
        "drive": drive,
        "neurons": brain.num_neurons,
        "synapses": brain.num_synapses,
        "steps": steps,
        "dt_ms": brain.config.dt_ms,
        "steps_per_second": steps / seconds,
        "times_real_time": steps * brain.config.dt_ms / 1000 / seconds,
        "spikes": fired,
        "mean_rate_hz": rates,
        "mean_rate_hz_of_all": fired / brain.num_neurons / (steps * brain.config.dt_ms / 1000),
        "state_bytes": state.nbytes,
        "per_step": _cost_values(cost),
        "modulators": _level_values(levels),
        "plasticity": changes,
        "out": None if out is None else str(out),
    }
    return Answer(values, _lines(brain, values, cost))


@answering
def raster(
    config: Config,
    text: Annotated[
        str | None,
        typer.Argument(metavar="[TEXT]", help="What a spiking language model reads; CONFIG is its directory."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture, as .png, .svg, .pdf, .jpg or .webp.")] = Path("raster.png"),
    steps: Annotated[int, typer.Option(min=2, help="Steps to take, each of the file's dt_ms.")] = 500,
    drive: DriveOption = "constant",
    level: Level = None,
    release: Annotated[
        list[str] | None,
        typer.Option("--release", help="NAME=AMOUNT@MS: so much of a modulator at that time; it fades. Repeatable."),
    ] = None,
    arrays: Annotated[Path | None, typer.Option(help="Write what is drawn as arrays, too, as .npz.")] = None,
    traces: Annotated[int, typer.Option(min=1, help="Neurons of each region whose membrane is drawn.")] = 1,
    seed: Seed = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Draw a spiking network at work: spikes by region, rates, modulators and membranes.

    Of a spiking language model: what it does while it reads TEXT, for as many steps as that takes.
    """
    from pragnosia.measure.raster import draw
    from pragnosia.spiking.recording import record

    _check_paths(out, arrays)
    levels, currents = _levels(level), None
    if spikes.is_spiking(config):
        brain, steps, currents = spikes.reading(config, text)
    elif text is not None:
        raise ConfigError(f"{config} is no spiking language model, which alone reads a text; leave the text out")
    else:
        brain = _brain(config, drive, seed)
    releases = [_release(one, brain.config.dt_ms) for one in release or []]
    recording, _ = record(
        *(brain, brain.begin(), steps),
        levels=levels,
        releases=releases,
        traced_per_region=traces,
        currents=currents,
    )
    draw(recording, out)
    if arrays is not None:
        recording.save(arrays)
    seconds = steps * brain.config.dt_ms / 1000
    rates = recording.counts.sum(0) / recording.sizes / seconds
    values: dict[str, Any] = {
        "picture": str(out),
        "arrays": None if arrays is None else str(arrays),
        "steps": steps,
        "spikes": len(recording.spike_steps),
        "mean_rate_hz": dict(zip(recording.regions.tolist(), rates.tolist(), strict=True)),
    }
    written = [("picture", str(out)), *([] if arrays is None else [("arrays", str(arrays))])]
    return Answer(
        values, aligned([*written, ("spikes", f"{format_count(values['spikes'])} in {plural(steps, 'step')}")])
    )


def _brain(config: Path, drive: str, seed: int | None, levels: Levels | None = None) -> Brain:
    from pragnosia.spiking.configuration import read_brain
    from pragnosia.spiking.files import FILE
    from pragnosia.spiking.modulation import modulated
    from pragnosia.spiking.regions import Brain

    config = config / FILE if config.is_dir() else config
    brain = Brain.build(read_brain(config, {} if seed is None else {"seed": seed}), drive=drive)
    return brain if levels is None else modulated(brain, levels)


def keep_brain(out: Path, brain: Brain) -> None:
    """A folder with a brain's file and all its synapses, whole or not at all. Raises CheckpointError."""
    from pragnosia.checkpoints.writer import new_directory
    from pragnosia.spiking.keeping import keep

    with new_directory(out) as folder:
        keep(folder, brain.config, {number: one.synapses for number, one in enumerate(brain.projections)})


def _check_out(out: Path, *, learn: bool) -> None:
    """Raise ConfigError, CheckpointError before anything is run."""
    from pragnosia.checkpoints.admission import check_vacant

    if not learn:
        raise ConfigError(f"--out {out} keeps what was learned, and nothing is: add --learn")
    check_vacant(out)


def _levels(given: list[str] | None) -> Levels:
    """`NAME=LEVEL`, several. Raises ConfigError."""
    from pragnosia.spiking.modulation import Levels

    return Levels.of(dict(_named(one, "--level", "NAME=LEVEL, as in serotonin=2") for one in given or []))


def _named(text: str, option: str, form: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name.strip(), float(number)
    except ValueError:
        raise ConfigError(f"{option} {text!r} is not {form}") from None


def _release(text: str, dt_ms: float) -> tuple[int, Mapping[str, float]]:
    """`NAME=AMOUNT@MS`: step, amount by name. Raises ConfigError."""
    from pragnosia.errors import unknown_name
    from pragnosia.spiking.modulation import STRENGTHS

    form = "NAME=AMOUNT@MS, as in noradrenaline=1@200"
    amount, _, at = text.partition("@")
    name, much = _named(amount, "--release", form)
    if name not in STRENGTHS:
        raise ConfigError(unknown_name("modulator", name, STRENGTHS))
    try:
        return round(float(at) / dt_ms), {name: much}
    except ValueError:
        raise ConfigError(f"--release {text!r} is not {form}") from None


def _check_paths(out: Path, arrays: Path | None) -> None:
    """Raise ConfigError before anything is run."""
    from pragnosia.measure.pictures import FORMATS

    if out.suffix[1:].lower() not in FORMATS:
        raise ConfigError(f"--out {out} is no picture: end its name in {', '.join(f'.{name}' for name in FORMATS)}")
    if arrays is not None and arrays.suffix != ".npz":
        raise ConfigError(f"--arrays {arrays} must end in .npz")
    for path in (out, arrays):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"there is no folder {path.parent} to write {path.name} into; make it first")


def _cost_values(cost: SpikingCost) -> dict[str, Any]:
    return {
        "neuron_updates": cost.neuron_updates,
        "synaptic_operations": cost.synaptic_operations,
        "operations": cost.operations,
        "bytes": cost.num_bytes,
        "joules": cost.joules,
        "joules_source": "model",
        "dense_operations": cost.dense_operations,
        "dense_bytes": cost.dense_bytes,
        "dense_joules": cost.dense_joules,
    }


def _learned(one: Mapping[str, Any]) -> str:
    """What a rule made of a projection."""
    means = f"mean magnitude {one['mean_before']:.4f} to {one['mean_after']:.4f}"
    return f"{one['projection']}: {one['changed']:,} of {one['synapses']:,} synapses changed, {means}"


def _level_values(levels: Levels) -> dict[str, Any]:
    from pragnosia.spiking.modulation import STRENGTHS

    return {name: {"level": getattr(levels, name), "factor": levels.factor(name)} for name in STRENGTHS}


def _lines(brain: Brain, values: dict[str, Any], cost: SpikingCost) -> list[str]:
    rates = ", ".join(f"{name} {rate:.1f}" for name, rate in values["mean_rate_hz"].items())
    woken = f"{cost.synaptic_operations:,.0f} of {brain.num_synapses:,} synapses"
    energy = f"{format_joules(cost.joules)} by model (every synapse in every step: {format_joules(cost.dense_joules)})"
    return aligned(
        [
            ("neurons", f"{values['neurons']:,}"),
            ("synapses", f"{values['synapses']:,}"),
            ("steps", f"{values['steps']:,} of {values['dt_ms']:g} ms, drive {values['drive']}"),
            ("speed", f"{values['steps_per_second']:,.0f} steps/s, {values['times_real_time']:.2f} times real time"),
            ("rate", f"{values['mean_rate_hz_of_all']:.1f} Hz: {rates}"),
            ("a step", f"{cost.neuron_updates:,} neurons updated, {woken}, {energy}"),
            ("state", format_bytes(values["state_bytes"])),
            *((f"{one['rule']}", _learned(one)) for one in values["plasticity"]),
            *([] if values["out"] is None else [("learned", f"{values['out']}: pragnosia simulate {values['out']}")]),
        ]
    )
