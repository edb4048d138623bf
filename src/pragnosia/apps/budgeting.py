"""Running within a memory budget, and `plan`: what would be where, and how fast it would be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, answering
from pragnosia.units import format_bytes, format_duration

if TYPE_CHECKING:
    from pragnosia.inference.budget import Rates
    from pragnosia.inference.speaker import Pragnosia

Memory = Annotated[
    str | None,
    typer.Option(help="A budget for the whole process, as in 4GiB: units stay on disk and come when they wake."),
]
Context = Annotated[
    int | None, typer.Option(min=1, help="With --memory: tokens to have room for; default 4096 or all the model holds.")
]
Adapter = Annotated[
    Path | None,
    typer.Option(help="An adapter of this model in PEFT's format, as `tune` writes it; added, not folded in."),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact", help="Another family's model by transformers' own modules: its logits bit for bit, slower."
    ),
]
Stats = Annotated[bool, typer.Option("--stats", help="Say what decoded; with --memory also what was here, and read.")]


@answering
def plan(
    model: Annotated[Path, typer.Argument(help="A model directory, ours or a supported family's.", metavar="MODEL")],
    memory: Annotated[str, typer.Option(help="The budget, as in 4GiB.")],
    context: Context = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Say what of a model would stay in memory within a budget, and how fast it would speak on this machine."""
    check_memory(memory)
    from pragnosia.inference.budget import as_bytes
    from pragnosia.inference.stream import planned

    shared = planned(model, as_bytes(memory), context=context)[1]
    rates = measured_rates(model)
    values = {
        "model": str(model),
        **asdict(shared),
        "pool": shared.pool,
        "total": shared.total,
        "hit_rate": shared.hit_rate,
        "tokens_per_second": shared.tokens_per_second(rates),
        "memory_bytes_per_second": rates.memory,
        "disk_bytes_per_second": rates.disk,
    }
    measured = f"  measured: memory {format_bytes(rates.memory)}/s, disk {format_bytes(rates.disk)}/s"
    return Answer(values, [*shared.table(rates).splitlines(), measured])


def check_memory(memory: str | None) -> None:
    """Raise ConfigError for a budget nobody can read; torch is not loaded."""
    from pragnosia.errors import ConfigError
    from pragnosia.units import parse_bytes

    try:
        size = 1 if memory is None else parse_bytes(memory)
    except ValueError as error:
        raise ConfigError(f"--memory: {error}") from error
    if size <= 0:
        raise ConfigError(f"--memory is {memory}; it must be more than nothing, as in 4GiB")


def open_speaker(
    model: Path,
    memory: str | None,
    context: int | None,
    adapter: Path | None = None,
    *,
    quiet: bool,
    exact: bool = False,
) -> Pragnosia:
    """The model, with its plan printed first where there is a budget."""
    if adapter is not None:
        from pragnosia.tuning.peft_config import check_adapter

        check_adapter(adapter)
    from pragnosia.inference.speaker import Pragnosia

    with bar("loading", quiet=quiet) as progress:
        speaker = Pragnosia.from_pretrained(
            model, memory=memory, context=context, adapter=adapter, progress=progress, exact=exact
        )
    if not quiet and speaker.plan is not None:
        print(speaker.plan.table(), file=sys.stderr)
    return speaker


def measured_rates(folder: Path) -> Rates:
    """How fast this machine reads memory, and the disk that holds `folder`."""
    from pragnosia.inference.budget import Rates
    from pragnosia.measure.bandwidth import measure_speeds

    speeds = measure_speeds(folder)
    assert speeds.disk is not None
    return Rates(memory=speeds.devices[0].memory_bytes_per_second, disk=speeds.disk.read_bytes_per_second)


def streamed(speaker: Pragnosia, tokens: int) -> dict[str, Any]:
    """What was here and what was read, since the model was loaded; nothing for a model in memory."""
    import resource

    import torch

    from pragnosia.inference.stream import pool_of

    pool = pool_of(speaker.model)
    if pool is None:
        return {}
    stats = pool.stats()
    return {
        "hit_rate": stats.hit_rate,
        "bytes_read_per_token": stats.bytes_read / max(tokens, 1),
        "seconds_waiting": stats.seconds_waiting / torch.get_num_threads(),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def streamed_line(values: dict[str, Any]) -> str:
    """The same for people."""
    return (
        f"[{values['hit_rate']:.0%} of woken units were here, {format_bytes(values['bytes_read_per_token'])} read per "
        f"token, {format_duration(values['seconds_waiting'])} waiting for the disk, peak memory "
        f"{format_bytes(values['peak_memory_bytes'])}]"
    )


class Counting(Protocol):
    """Is told how much is done, and of how much."""

    def __call__(self, done: int, total: int) -> None: ...


@contextmanager
def bar(doing: str, *, quiet: bool = False, counts: bool = False) -> Iterator[Counting | None]:
    """Bytes done (or with `counts` a share), how fast and how long still, on stderr, where somebody watches.

    It shows from the first word it is told until all is done, may then show again, and leaves nothing behind.
    """
    from rich.console import Console

    console = Console(file=sys.stderr)
    if quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount = (TaskProgressColumn(),) if counts else (DownloadColumn(), TransferSpeedColumn())
    shown: Progress | None = None

    def show(done: int, total: int) -> None:
        nonlocal shown
        if shown is None and done < total:
            shown = Progress(
                TextColumn(doing), BarColumn(), *amount, TimeRemainingColumn(), console=console, transient=True
            )
            shown.add_task(doing, total=total)
            shown.start()
        if shown is not None:
            shown.update(shown.task_ids[0], completed=done, total=total)
        if done >= total:
            stop()

    def stop() -> None:
        nonlocal shown
        if shown is not None:
            shown.stop()
        shown = None

    try:
        yield show
    finally:
        stop()
