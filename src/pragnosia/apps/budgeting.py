"""Running within a memory budget: its options, what is told before and what afterwards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from pragnosia.units import format_bytes, format_duration, told_apart

if TYPE_CHECKING:
    from pragnosia.inference.speaker import Pragnosia

Amount = TypeVar("Amount", int, float)
PACKED = "bf16, int8, int4, int3, int2, nf4, bf16-2:4 or int8-2:4"
"""What one can pack into; in words, for help is told before torch is loaded."""

Memory = Annotated[
    str | None,
    typer.Option(help="A budget for the whole process, as in 4GiB: units stay on disk and come when they wake."),
]
Context = Annotated[
    int | None,
    typer.Option(min=1, help="With --memory: tokens to have room for; default 4096, at most what the model holds."),
]
Vram = Annotated[
    str | None,
    typer.Option(help="With --memory: a budget of the GPU's memory, as in 4GiB: the units that woke lately are there."),
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


def check_memory(memory: str | None) -> None:
    """Raise ConfigError for a budget nobody can read; torch is not loaded."""
    if memory is not None:
        budget_of("--memory", memory)


def size_of(option: str, text: str) -> int:
    """The bytes an option was given. Raises ConfigError."""
    from pragnosia.units import parse_bytes

    return amount_of(option, text, parse_bytes, "4GiB")


def budget_of(option: str, text: str) -> int:
    """As `size_of`, for what is never as little as a bare number of bytes below a MiB. Raises ConfigError."""
    from pragnosia.errors import ConfigError
    from pragnosia.units import perhaps_gib

    if hint := perhaps_gib(text):
        raise ConfigError(f"{option} is {text}{hint}")
    return size_of(option, text)


def amount_of(option: str, text: str, parse: Callable[[str], Amount], example: str) -> Amount:
    """What an option was given, as `parse` reads it. Raises ConfigError for what is no amount, and for nothing."""
    from pragnosia.errors import ConfigError

    try:
        amount = parse(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error
    if amount <= 0:
        raise ConfigError(f"{option} is {text}; it must be more than nothing, as in {example}")
    return amount


def open_speaker(
    model: Path,
    memory: str | None,
    context: int | None,
    adapter: Path | None = None,
    *,
    quiet: bool,
    exact: bool = False,
    vram: str | None = None,
    **early: Any,
) -> Pragnosia:
    """The model, with its plan printed first where there is a budget; `early` as for `from_pretrained`."""
    if adapter is not None:
        from pragnosia.tuning.peft_config import check_adapter

        check_adapter(adapter)
    from pragnosia.inference.speaker import Pragnosia

    if vram is not None:
        budget_of("--vram", vram)
    if memory is not None and not quiet:
        _warn_of_limits(budget_of("--memory", memory))
    with bar("loading", quiet=quiet) as progress:
        speaker = Pragnosia.from_pretrained(
            model, memory=memory, context=context, adapter=adapter, progress=progress, exact=exact, vram=vram, **early
        )
    if not quiet and speaker.plan is not None:
        print(speaker.plan.table(), file=sys.stderr)
    return speaker


def check_context(context: int | None, memory: str | None) -> None:
    """Raise ConfigError for a plan's room without a plan."""
    if context is not None and memory is None:
        from pragnosia.errors import ConfigError

        raise ConfigError("--context plans the room of a budget; give --memory beside it, or leave it out")


def _warn_of_limits(budget: int) -> None:
    """A budget above what this process may have is kept to, and may yet be too much."""
    from pragnosia.measure.limits import read_limits

    most = read_limits().memory_total
    if budget > most:
        asked, most_words = told_apart(budget, most)
        words = f"--memory is {asked}, and this process may have {most_words}"
        print(f"pragnosia: {words}: it may be ended if it needs more", file=sys.stderr)


def streamed(speaker: Pragnosia, tokens: int, seconds: float) -> dict[str, Any]:
    """What was here and what was read, since the model was loaded, and what of `seconds` was spent on which.

    Nothing for a model in memory.
    """
    import resource

    import torch

    from pragnosia.inference.stream import pool_of, slots_of

    pool, slots = pool_of(speaker.model), slots_of(speaker.model)
    if pool is None:
        return {}
    stats = pool.stats()
    here = {"hit_rate": stats.hit_rate}
    if speaker.plan is not None and speaker.plan.dense:  # each half of a layer asks for it; what stays is what is here
        here = {"hit_rate": speaker.plan.hit_rate}
    if slots is not None:  # what is asked of the host's pool is what the GPU lacks
        asked = max(slots.hits + slots.misses, 1)
        copied = slots.bytes_copied / max(tokens, 1)
        here = {"hit_rate": 1 - stats.misses / asked, "gpu_hit_rate": slots.hit_rate, "bytes_copied_per_token": copied}
    waiting = stats.seconds_waiting / torch.get_num_threads()
    return {
        **here,
        "bytes_read_per_token": stats.bytes_read / max(tokens, 1),
        "seconds_waiting": waiting,
        "seconds_computing": max(seconds - waiting, 0.0),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def streamed_line(values: dict[str, Any]) -> str:
    """The same for people."""
    on_gpu = f" ({values['gpu_hit_rate']:.0%} on the GPU)" if "gpu_hit_rate" in values else ""
    return (
        f"[{values['hit_rate']:.0%} of woken units were here{on_gpu}, "
        f"{format_bytes(values['bytes_read_per_token'])} read per token, "
        f"{format_duration(values['seconds_waiting'])} waiting for the disk and "
        f"{format_duration(values['seconds_computing'])} computing, "
        f"peak memory {format_bytes(values['peak_memory_bytes'])}]"
    )


def _by_lines(doing: str) -> Counting:
    """A line for every tenth that is done."""
    tenth = -1

    def tell(done: int, total: int) -> None:
        nonlocal tenth
        if (now := 10 * done // max(total, 1)) != tenth:
            tenth = now
            print(f"{doing}: {done} of {total}", file=sys.stderr, flush=True)

    return tell


class Counting(Protocol):
    """Is told how much is done, and of how much."""

    def __call__(self, done: int, total: int) -> None: ...


def bytes_from_disk(speaker: Pragnosia) -> Callable[[], int] | None:
    """How many bytes were read so far of a model whose units lie on disk."""
    from pragnosia.inference.stream import pool_of

    pool = pool_of(speaker.model)
    return None if pool is None else lambda: pool.stats().bytes_read


@contextmanager
def bar(
    doing: str,
    *,
    quiet: bool = False,
    counts: bool = False,
    disk: Callable[[], int] | None = None,
    lines: bool = False,
) -> Iterator[Counting | None]:
    """Bytes done (or with `counts` a share), how fast and how long still, on stderr, where somebody watches.

    `disk` says how many bytes have been read meanwhile, where that is something else than what is done. With `lines`
    there are up to ten lines of counts where nobody watches, as a log is written.

    It shows from the first word it is told until all is done, may then show again, and leaves nothing behind.
    """
    from rich.console import Console

    console = Console(file=sys.stderr)
    if quiet or not console.is_terminal:
        yield _by_lines(doing) if lines and not quiet else None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from pragnosia.training.progress import FromDisk

    amount: tuple[ProgressColumn, ...] = (
        (TaskProgressColumn(),) if counts else (DownloadColumn(), TransferSpeedColumn())
    )
    if disk is not None:
        amount += (FromDisk(disk),)
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
