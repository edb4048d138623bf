"""`eval` and `energy`: how well a model predicts a text, and what that costs at each setting of the energy dial."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.apps.budgeting import (
    Adapter,
    Exact,
    Memory,
    Stats,
    Vram,
    check_memory,
    open_speaker,
    streamed,
    streamed_line,
)
from pragnosia.apps.leaving import ExitConfidence, check_early
from pragnosia.apps.speaking import Model
from pragnosia.units import format_bytes, format_count, format_duration, format_joules

if TYPE_CHECKING:
    from pragnosia.measure.evaluation import Evaluation
    from pragnosia.measure.frontier import Point

Data = Annotated[
    list[str], typer.Option("--data", help="Texts: files, directories, recipes, hf:NAME or default; repeatable.")
]
Context = Annotated[int | None, typer.Option(min=1, help="Tokens seen at once; default what the model holds.")]
_CONTEXT_IN_BUDGET = 512  # within a budget of memory, unless said otherwise: windows take scratch
_OPENING = 64  # characters
MaxBytes = Annotated[str | None, typer.Option(help="Stop after so much text, as in 1MiB.")]


@answering
def evaluate(
    model: Model,
    data: Data,
    context: Context = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens scored per window; default half the context.")
    ] = None,
    max_bytes: MaxBytes = None,
    energy: Annotated[
        str, typer.Option(help="In (0, 1]: the share of the usual number of units that wakes; several make a frontier.")
    ] = "1",
    plot: Annotated[Path | None, typer.Option(help="With several energies: draw the frontier, as PNG.")] = None,
    memory: Memory = None,
    adapter: Adapter = None,
    exact: Exact = False,
    vram: Vram = None,
    exit_confidence: ExitConfidence = None,
    stats: Stats = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Perplexity and bits per byte of a text, every token scored once with the context before it.

    Several energies, as in 1,0.5,0.2, are set side by side: quality, cost and speed of decoding at each.
    """
    energies = _energies("--energy", energy)
    _check_input(model, data, max_bytes, energies)
    check_memory(memory)
    if len(energies) > 1 and exit_confidence is not None:
        from pragnosia.errors import ConfigError

        raise ConfigError(
            "a frontier of energies speaks with all layers; give one energy, or leave --exit-confidence out"
        )
    check_early(model, speculate=False, exit_confidence=exit_confidence)
    if plot is not None:
        _check_plot(plot, energies)
    text = _Text(model, data, context, stride, max_bytes, memory, adapter, exact, vram, exit_confidence, quiet=as_json)
    first = text.measured(energies[0])
    values = {"model": str(model), "data": data, **first.to_dict()}
    values |= streamed(text.speaker, values["tokens_read"], values["seconds"])
    if len(energies) > 1:
        return _frontier(text, first, energies, values, plot)
    rows = [
        ("bits per byte", f"{values['bits_per_byte']:.4f}"),
        ("perplexity", f"{values['perplexity']:.3f} per token"),
        ("word perplexity", f"{values['word_perplexity']:.2f} (per word and line end, as WikiText is reported)"),
        ("text", f"{format_bytes(values['bytes'])}, {format_count(values['tokens'])} tokens"),
        ("speed", f"{values['tokens_per_second']:.0f} tokens/s, {format_duration(values['seconds'])}"),
        ("cost per token", _cost(values)),
        *((("layers per token", f"{values['layers_per_token']:.2f}"),) if exit_confidence is not None else ()),
    ]
    return Answer(values, aligned(rows), aside=streamed_line(values) if stats and "hit_rate" in values else "")


@answering
def energy(
    model: Model,
    data: Data,
    at: Annotated[str, typer.Option(help="Energies to measure, separated by commas.")] = "1,0.5",
    context: Context = None,
    max_bytes: MaxBytes = "64KiB",
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """What a text costs at each energy: operations, bytes and joules from the units that actually woke."""
    energies = _energies("--at", at)
    _check_input(model, data, max_bytes, energies)
    text = _Text(model, data, context, None, max_bytes)
    rows = [(energy, text.measured(energy).to_dict()) for energy in energies]
    header = f"{'energy':>6}  {'bits/byte':>9}  {'awake':>6}  cost per token"
    lines = [
        f"{energy:>6.2f}  {row['bits_per_byte']:>9.4f}  {mean(row['awake_per_token']):>6.2f}  {_cost(row)}"
        for energy, row in rows
    ]
    values = {"model": str(model), "data": data, "settings": [{"energy": energy, **row} for energy, row in rows]}
    return Answer(values, [header, *lines])


def _frontier(
    text: _Text, first: Evaluation, energies: list[float], values: dict[str, Any], plot: Path | None
) -> Answer:
    """Every setting beside the others."""
    from pragnosia.measure.frontier import draw_frontier

    points = [text.point(energies[0], first)]
    points += [text.point(energy, text.measured(energy)) for energy in energies[1:]]
    header = ("energy", "bits/byte", "awake", "operations", "bytes", "joules", "tokens/s")
    rows = [
        (
            f"{one.energy:.2f}",
            f"{one.bits_per_byte:.4f}",
            f"{one.units_awake:.2f}",
            format_count(one.operations_per_token),
            format_bytes(one.bytes_per_token),
            format_joules(one.joules_per_token),
            f"{one.tokens_per_second:.1f}",
        )
        for one in points
    ]
    lines = ["".join(f"{cell:>12}" for cell in row) for row in (header, *rows)]
    lines.append(f"per token that is decoded, one text at a time; joules by {points[0].joules_source}")
    if plot is not None:
        draw_frontier(points, plot, f"{values['model']}: what sleep costs")
        lines.append(f"drawn: {plot}")
    return Answer(values | {"frontier": [one.to_dict() for one in points]}, lines)


def _check_plot(path: Path, energies: list[float]) -> None:
    """Raise ConfigError for a picture that cannot be drawn."""
    from pragnosia.errors import ConfigError

    if len(energies) < 2:
        raise ConfigError("--plot draws a frontier, which takes several energies: --energy 1,0.5,0.2")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no folder {path.absolute().parent}; make it first")


def _energies(option: str, text: str) -> list[float]:
    from pragnosia.errors import ConfigError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; write numbers in (0, 1] separated by commas, as in 1,0.5") from None


def _check_input(model: Path, data: list[str], max_bytes: str | None, energies: list[float]) -> None:
    """What can be said of the input before torch is loaded. Raises UserErrors."""
    from pragnosia.data.specs import resolve
    from pragnosia.inference.directory import check_speaker
    from pragnosia.inference.sampling import check_energy

    for energy in energies:
        check_energy(energy)
    _limit(max_bytes)
    check_speaker(model)
    for source in data:
        resolve(source)


def _limit(max_bytes: str | None) -> int | None:
    from pragnosia.errors import ConfigError
    from pragnosia.units import parse_bytes

    try:
        return parse_bytes(max_bytes) if max_bytes else None
    except ValueError as error:
        raise ConfigError(f"--max-bytes: {error}") from error


class _Text:
    """A text before a model that is loaded once, to be scored at several settings."""

    def __init__(
        self,
        model: Path,
        data: list[str],
        context: int | None,
        stride: int | None,
        max_bytes: str | None,
        memory: str | None = None,
        adapter: Path | None = None,
        exact: bool = False,
        vram: str | None = None,
        exit_confidence: str | None = None,
        *,
        quiet: bool = True,
    ) -> None:
        from pragnosia.data import Joined, resolve
        from pragnosia.inference.loading import load_config

        if context is None and memory is not None:
            context = min(_CONTEXT_IN_BUDGET, load_config(model).max_position_embeddings)
        early = {"speculate": False, "exit_confidence": exit_confidence}
        self.speaker = open_speaker(model, memory, context, adapter, quiet=quiet, exact=exact, vram=vram, **early)
        self.documents = Joined(tuple(resolve(source) for source in data))
        # as transformers reads a text; a batch's eager scores would pass the budget
        batch = 1 if exact else None
        self.options: dict[str, Any] = {
            "context": context,
            "stride": stride,
            "batch_size": batch,
            "max_bytes": _limit(max_bytes),
            "leave": () if self.speaker.early is None else self.speaker.early.leave,
        }

    def measured(self, energy: float) -> Evaluation:
        """The text scored."""
        from pragnosia.measure.evaluation import evaluate as measure_text

        speaker = self.speaker
        return measure_text(speaker.model, speaker.tokenizer, self.documents, energy=energy, **self.options)

    def point(self, energy: float, measured: Evaluation) -> Point:
        """Its quality beside what it costs to decode behind the text's first words."""
        from pragnosia.apps.speaking import counted
        from pragnosia.measure.frontier import point

        words = next(iter(self.documents.documents()))[:_OPENING]
        limit = int(self.speaker.model.config.max_position_embeddings)
        ids = self.speaker.encode(words)[: max(1, limit // 4)]
        return point(self.speaker.model, counted(self.speaker), ids, energy, measured)


def _cost(values: dict[str, Any]) -> str:
    return (
        f"{format_count(values['operations_per_token'])} operations, {format_bytes(values['bytes_per_token'])}, "
        f"{format_joules(values['joules'] / max(values['tokens_read'], 1))} by {values['joules_source']}"
    )
