"""`eval` and `energy`: how well a model predicts a text, and what that costs at each setting of the energy dial."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.apps.budgeting import Adapter, Exact, Memory, Vram, check_memory, open_speaker
from pragnosia.apps.leaving import ExitConfidence, check_early
from pragnosia.apps.speaking import Energy, Model
from pragnosia.units import format_bytes, format_count, format_duration, format_joules

Data = Annotated[
    list[str], typer.Option("--data", help="Texts: files, directories, recipes, hf:NAME or default; repeatable.")
]
Context = Annotated[int | None, typer.Option(min=1, help="Tokens seen at once; default what the model holds.")]
_CONTEXT_IN_BUDGET = 512  # within a budget of memory, unless said otherwise: windows take scratch
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
    energy: Energy = 1.0,
    memory: Memory = None,
    adapter: Adapter = None,
    exact: Exact = False,
    vram: Vram = None,
    exit_confidence: ExitConfidence = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Perplexity and bits per byte of a text, every token scored once with the context before it."""
    _check_input(model, data, max_bytes, [energy])
    check_memory(memory)
    check_early(model, speculate=False, exit_confidence=exit_confidence)
    measured = _evaluated(
        model, data, context, stride, max_bytes, energy, memory, adapter, exact, vram, exit_confidence
    )
    values = {"model": str(model), "data": data, **measured}
    rows = [
        ("bits per byte", f"{values['bits_per_byte']:.4f}"),
        ("perplexity", f"{values['perplexity']:.3f} per token"),
        ("word perplexity", f"{values['word_perplexity']:.2f} (per word and line end, as WikiText is reported)"),
        ("text", f"{format_bytes(values['bytes'])}, {format_count(values['tokens'])} tokens"),
        ("speed", f"{values['tokens_per_second']:.0f} tokens/s, {format_duration(values['seconds'])}"),
        ("cost per token", _cost(values)),
        *((("layers per token", f"{values['layers_per_token']:.2f}"),) if exit_confidence is not None else ()),
    ]
    return Answer(values, aligned(rows))


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
    energies = _energies(at)
    _check_input(model, data, max_bytes, energies)
    rows = [(energy, _evaluated(model, data, context, None, max_bytes, energy)) for energy in energies]
    header = f"{'energy':>6}  {'bits/byte':>9}  {'awake':>6}  cost per token"
    lines = [
        f"{energy:>6.2f}  {row['bits_per_byte']:>9.4f}  {mean(row['awake_per_token']):>6.2f}  {_cost(row)}"
        for energy, row in rows
    ]
    values = {"model": str(model), "data": data, "settings": [{"energy": energy, **row} for energy, row in rows]}
    return Answer(values, [header, *lines])


def _energies(text: str) -> list[float]:
    from pragnosia.errors import ConfigError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--at is {text!r}; write numbers in (0, 1] separated by commas, as in 1,0.5") from None


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


def _evaluated(
    model: Path,
    data: list[str],
    context: int | None,
    stride: int | None,
    max_bytes: str | None,
    energy: float,
    memory: str | None = None,
    adapter: Path | None = None,
    exact: bool = False,
    vram: str | None = None,
    exit_confidence: str | None = None,
) -> dict[str, Any]:
    from pragnosia.data import Joined, resolve
    from pragnosia.inference.loading import load_config
    from pragnosia.measure.evaluation import evaluate as measure_text

    if context is None and memory is not None:
        context = min(_CONTEXT_IN_BUDGET, load_config(model).max_position_embeddings)
    early = {"speculate": False, "exit_confidence": exit_confidence}
    speaker = open_speaker(model, memory, context, adapter, quiet=True, exact=exact, vram=vram, **early)
    text = Joined(tuple(resolve(source) for source in data))
    return measure_text(
        speaker.model,
        speaker.tokenizer,
        text,
        context=context,
        stride=stride,
        batch_size=1 if exact else None,  # as transformers reads a text; a batch's eager scores would pass the budget
        energy=energy,
        max_bytes=_limit(max_bytes),
        leave=() if speaker.early is None else speaker.early.leave,
    ).to_dict()


def _cost(values: dict[str, Any]) -> str:
    return (
        f"{format_count(values['operations_per_token'])} operations, {format_bytes(values['bytes_per_token'])}, "
        f"{format_joules(values['joules'] / max(values['tokens_read'], 1))} by {values['joules_source']}"
    )
