"""`plan`: what of a model would be where within a budget, and how fast it would be; the model need not exist yet."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, answering
from pragnosia.apps.budgeting import Context, size_of
from pragnosia.apps.rates import given_rates, measured_rates, rates_line
from pragnosia.checkpoints.gguf_header import gguf_in
from pragnosia.units import format_bytes

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
        typer.Option(help="Plan as if packed: bf16, int8, int4, int3, int2 or nf4; default int4 for a preset."),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(help="Instead of measuring, as in memory=20GB/s,disk=1GB/s,vram=300GB/s,link=12GB/s."),
    ] = None,
    context: Context = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Say what of a model would be in memory, on the GPU and on disk, and how fast it would speak on this machine.

    A model that does not exist yet can be named by its preset; --format says what packing would change.
    """
    budget, gpu = size_of("--memory", memory), size_of("--vram", vram) if vram is not None else 0
    given, room, folder = given_rates(rates), *_room(disk)
    sizes = _sizes(model, format)
    _check_room(sizes, room, disk)
    from pragnosia.inference.budget import longest_context, make_plan

    planned = make_plan(sizes, budget, context=context, vram=gpu)
    longest = longest_context(sizes, budget, vram=gpu)
    found = measured_rates(folder or _folder(model), given, gpu=bool(gpu))
    note = f"{'packed as' if _is_packed(sizes) else 'as it lies,'} {sizes.format.name}"
    note += " (the default)" if format is None and not Path(model).exists() else ""
    note += f", of {format_bytes(room)}" if room is not None else ""
    first = f"  {'on disk':<26}{format_bytes(sizes.on_disk):>10}  {note}"
    last = f"  {rates_line(found, given, gpu=bool(gpu))}"
    middle = [*planned.table(found).splitlines(), f"  longest context that fits: {longest:,} tokens, in place of units"]
    values = {"model": model, "format": sizes.format.name, "on_disk": sizes.on_disk, "disk_room": room}
    return Answer(values | plan_values(planned, found) | {"longest_context": longest}, [first, *middle, last])


def plan_values(planned: Plan, rates: Rates) -> dict[str, Any]:
    """Every number of a plan, for programs."""
    hits, speeds = planned.hit_range, planned.speed_range(rates)
    gpu = bool(planned.vram)
    return {
        **asdict(planned),
        "pool": planned.pool,
        "total": planned.total,
        "vram_pool": planned.vram_pool,
        "vram_total": planned.vram_total,
        "hit_rate": planned.hit_rate,
        "hit_rate_low": hits[0],
        "hit_rate_high": hits[1],
        "vram_hit_rate": planned.vram_hit_rate,
        "tokens_per_second": planned.tokens_per_second(rates),
        "tokens_per_second_low": speeds[0],
        "tokens_per_second_high": speeds[1],
        "memory_bytes_per_second": rates.memory,
        "disk_bytes_per_second": rates.disk,
        "vram_bytes_per_second": rates.vram if gpu else None,
        "link_bytes_per_second": rates.link if gpu else None,
        "rates_assumed": list(rates.assumed),
    }


def _sizes(model: str, format_name: str | None) -> Sizes:
    """A directory or file as it lies or as if it were packed, or a preset. Raises CheckpointError."""
    from pragnosia.errors import CheckpointError, unknown_name
    from pragnosia.model.presets import PRESETS

    if Path(model).is_dir() or gguf_in(model) is not None:
        from pragnosia.inference.shelf import open_shelf, shelf_of
        from pragnosia.inference.sizes import as_if_packed

        return open_shelf(model) if format_name is None else as_if_packed(shelf_of(model), format_name)
    if model not in PRESETS:
        raise CheckpointError(unknown_name("preset", model, PRESETS) + "; and there is no directory of that name")
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
        return size_of("--disk", disk), None
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
        way = f"{SMALLER[-1]}, the smallest format, takes {format_bytes(smaller)}"
    raise BudgetError(
        f"{sizes.name} as {sizes.format.name} takes {format_bytes(sizes.on_disk)} on disk, "
        f"--disk {disk} has {format_bytes(room)}; {way}"
    )
