"""`plan`: what of a model would be where within a budget, and how fast it would be; the model need not exist yet."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, answering
from pragnosia.apps.budgeting import PACKED, Adapter, Context, Exact, budget_of
from pragnosia.apps.rates import busy, given_rates, measured_rates, rates_line
from pragnosia.checkpoints.gguf_header import gguf_in
from pragnosia.units import format_bytes, told_apart

if TYPE_CHECKING:
    from pragnosia.inference.plan import Plan, Rates
    from pragnosia.inference.sizes import Sizes

DEFAULT_FORMAT = "int4"


@answering
def plan(
    model: Annotated[
        str, typer.Argument(metavar="MODEL|PRESET", help="A model directory, a GGUF file or the name of a preset.")
    ],
    memory: Annotated[str, typer.Option(help="The budget, as in 4GiB.")],
    vram: Annotated[str | None, typer.Option(help="Of a GPU's memory, what the model may take, as in 8GiB.")] = None,
    disk: Annotated[
        str | None, typer.Option(help="Room on disk: a size, or a folder whose free space it is. Refuse if too small.")
    ] = None,
    format: Annotated[  # noqa: A002
        str | None,
        typer.Option(help=f"Plan as if packed: {PACKED}; default {DEFAULT_FORMAT} for a preset."),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(help="Instead of measuring, as in memory=20GB/s,disk=1GB/s,vram=300GB/s,link=12GB/s."),
    ] = None,
    context: Context = None,
    adapter: Adapter = None,
    exact: Exact = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Say what of a model would be in memory, on the GPU and on disk, and how fast it would speak on this machine.

    A model that does not exist yet can be named by its preset; --format says what packing would change. With --adapter
    or --exact the plan counts what these take, as `generate` with the same options will.
    """
    budget, gpu = budget_of("--memory", memory), budget_of("--vram", vram) if vram is not None else 0
    _check_choices(model, exact=exact, **{"--adapter": adapter, "--vram": vram, "--format": format})
    given, room, folder = given_rates(rates), *_room(disk)
    sizes = _sizes(model, format)
    _check_room(sizes, room, disk)
    learned = _learned(adapter, model)  # before the plan, which counts what is there already
    planned, longest = _planned(sizes, budget, gpu, context, exact=exact)
    del learned
    crowd = None if {"memory", "disk"} <= given.keys() else busy()
    form = sizes.format.name
    found = measured_rates(folder or _folder(model), given, form=form, gpu=bool(gpu), rows=planned.rows_stay)
    note = f"{'packed as' if _is_packed(sizes) else 'as it lies,'} {_form(sizes)}"
    note += " (the default)" if format is None and not Path(model).exists() else ""
    note += f"; --disk has room for {format_bytes(room)}" if room is not None else ""
    first = f"  {'on disk':<26}{format_bytes(sizes.on_disk):>10}  {note}"
    last = f"  {rates_line(found, given, gpu=bool(gpu), rows=planned.rows_stay)}"
    middle = [*planned.table(found).splitlines(), f"  longest context that fits: {longest:,} tokens, in place of units"]
    values = {"model": model, "format": sizes.format.name, "on_disk": sizes.on_disk, "disk_room": room}
    values |= plan_values(planned, found) | {"longest_context": longest, "measured_while_busy": crowd is not None}
    return Answer(values, [first, *middle, last], aside="" if crowd is None else f"pragnosia: {crowd}")


def plan_values(planned: Plan, rates: Rates) -> dict[str, Any]:
    """Every number of a plan, for programs."""
    hits, speeds = planned.hit_range, planned.speed_range(rates)
    gpu = bool(planned.vram)
    return {
        **asdict(planned),
        "pool": planned.pool,
        "row_pool": planned.row_pool,
        "total": planned.total,
        "vram_pool": planned.vram_pool,
        "vram_total": planned.vram_total,
        "hit_rate": planned.hit_rate,
        "hit_rate_low": hits[0],
        "hit_rate_high": hits[1],
        "vram_hit_rate": planned.vram_hit_rate,
        "row_hit_rate": planned.row_hits(),
        "tokens_per_second": planned.tokens_per_second(rates),
        "tokens_per_second_low": speeds[0],
        "tokens_per_second_high": speeds[1],
        "memory_bytes_per_second": rates.memory,
        "disk_bytes_per_second": rates.disk,
        "single_reads_per_second": rates.reads if planned.rows_stay else None,
        "vram_bytes_per_second": rates.vram if gpu else None,
        "link_bytes_per_second": rates.link if gpu else None,
        "rates_assumed": list(rates.assumed),
    }


def _check_choices(model: str, *, exact: bool, **options: object) -> None:
    """Raise ConfigError for what cannot be together."""
    from pragnosia.errors import ConfigError

    odd = [name for name, value in options.items() if value is not None]
    if exact and odd:
        raise ConfigError(f"exact mode runs a model as it lies, on the CPU: leave {', '.join(odd)} out, or --exact")
    if options["--adapter"] is not None and options["--vram"] is not None:
        raise ConfigError("adapters do not run within --vram yet; leave it out, or merge the adapter into the model")
    if (exact or options["--adapter"] is not None) and not Path(model).exists():
        raise ConfigError(f"--exact and --adapter are for a model that is there, and {model} is not; leave them out")


def _learned(adapter: Path | None, model: str) -> object:
    """What an adapter holds, or nothing."""
    if adapter is None:
        return None
    from pragnosia.tuning.peft_config import check_adapter

    check_adapter(adapter)
    from pragnosia.tuning.lora import attach_tensors  # noqa: F401  (as whoever speaks with it imports)
    from pragnosia.tuning.peft_format import read_adapter

    return read_adapter(adapter, model)


def _planned(sizes: Sizes, budget: int, vram: int, context: int | None, *, exact: bool) -> tuple[Plan, int]:
    """The plan, and the longest context that fits."""
    if exact:
        from pragnosia.inference.exact_loading import plan_exact

        return plan_exact(sizes.name, budget, context=context)
    from pragnosia.inference.budget import longest_context, make_plan

    return make_plan(sizes, budget, context=context, vram=vram), longest_context(sizes, budget, vram=vram)


def _form(sizes: Sizes) -> str:
    """What the weights are: `bf16`, or of a GGUF file `Q4_0 and Q6_K, read as bf16`."""
    from pragnosia.inference.shelf import AsItLies

    name, kinds = sizes.format.name, sizes.kinds if isinstance(sizes, AsItLies) else []
    if not kinds or [kind.lower() for kind in kinds] in (["bf16"], ["f32"]):
        return name
    return f"{' and '.join(kinds)}, read as {name}"


def _sizes(model: str, format_name: str | None) -> Sizes:
    """A directory or file as it lies or as if it were packed, or a preset. Raises CheckpointError."""
    from pragnosia.errors import CheckpointError
    from pragnosia.inference.directory import neither
    from pragnosia.model.presets import PRESETS

    if Path(model).is_dir() or gguf_in(model) is not None:
        from pragnosia.inference.shelf import open_shelf, shelf_of
        from pragnosia.inference.sizes import as_if_packed

        return open_shelf(model) if format_name is None else as_if_packed(shelf_of(model), format_name)
    if model not in PRESETS:
        raise CheckpointError(neither(model, PRESETS))
    from pragnosia.inference.sizes import described_preset

    return described_preset(model, format_name or DEFAULT_FORMAT)


def _folder(model: str) -> Path:
    """Where the disk is measured: beside the model, here for a preset."""
    path = Path(model)
    return path if path.is_dir() else path.parent if path.is_file() else Path()


def _is_packed(sizes: Sizes) -> bool:
    from pragnosia.inference.shelf import AsItLies

    return not isinstance(sizes, AsItLies)


def _room(disk: str | None) -> tuple[int | None, Path | None]:
    """Bytes of room on disk, and the folder where they are. Raises ConfigError."""
    if disk is None:
        return None, None
    if Path(disk).is_dir():
        return shutil.disk_usage(disk).free, Path(disk)
    from pragnosia.errors import ConfigError

    try:
        return budget_of("--disk", disk), None
    except ConfigError as error:
        raise ConfigError(f"{error}; or name a folder that is there") from error


def _check_room(sizes: Sizes, room: int | None, disk: str | None) -> None:
    """Raise BudgetError where the disk is too small, with the nearest format that fits."""
    if room is None or sizes.on_disk <= room:
        return
    from pragnosia.errors import BudgetError
    from pragnosia.inference.sizes import as_if_packed
    from pragnosia.quantisation.sizes import SMALLER

    for name in SMALLER:
        smaller = as_if_packed(sizes, name).on_disk
        if smaller <= room:
            way = f"--format {name} takes {format_bytes(smaller)}"
            break
    else:
        way = f"even {SMALLER[-1]}, the smallest format, takes {format_bytes(smaller)}: make more room"
    takes, has = told_apart(sizes.on_disk, room)
    raise BudgetError(f"{sizes.name} as {sizes.format.name} takes {takes} on disk, --disk {disk} has {has}; {way}")
