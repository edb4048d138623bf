"""`eval`: how well a model predicts a text, and what that costs at each setting of the energy dial."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps import one_pass, spikes
from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.apps.budgeting import (
    Adapter,
    Exact,
    Memory,
    Stats,
    Vram,
    check_memory,
    open_speaker,
    size_of,
    streamed,
    streamed_line,
)
from pragnosia.apps.dialling import (
    COSTS,
    Awake,
    Energies,
    Wishes,
    as_wish,
    check_wishes,
    cost_cells,
    in_columns,
    set_to,
)
from pragnosia.apps.leaving import ExitConfidence, ExitMemory
from pragnosia.apps.remembering import Beside, Cache, NoMemory, Store, chosen_store
from pragnosia.apps.speaking import Model
from pragnosia.errors import ConfigError
from pragnosia.inference.one_pass import check_learner, is_one_pass
from pragnosia.model.setting import WHOLE
from pragnosia.units import format_bytes, format_count, format_duration, format_joules

if TYPE_CHECKING:
    from pragnosia.inference.dial import Wish
    from pragnosia.measure.evaluation import Evaluation
    from pragnosia.measure.frontier import Point
    from pragnosia.model.setting import Setting

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
    energy: Energies = "1",
    awake: Awake = None,
    plot: Annotated[
        Path | None, typer.Option(help="With several energies: draw the frontier, as .png, .svg, .pdf, .jpg or .webp.")
    ] = None,
    memory: Memory = None,
    adapter: Adapter = None,
    exact: Exact = False,
    vram: Vram = None,
    exit_confidence: ExitConfidence = None,
    exit_memory: ExitMemory = "exact",
    store: Store = None,
    no_memory: NoMemory = False,
    cache: Cache = False,
    beside: Beside = None,
    learn: Annotated[
        bool, typer.Option("--learn", help="A coincidence learner goes on learning while it reads; nothing is saved.")
    ] = False,
    stats: Stats = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Perplexity and bits per byte of a text, every token scored once with the context before it.

    Several energies, as in 1,0.5,0.2, are set side by side: quality, cost and speed of decoding at each. A token that
    may leave early is read as if it had been spoken.
    """
    if is_one_pass(model):
        one_pass.refuse(
            context=context,
            stride=stride,
            awake=awake,
            plot=plot,
            memory=memory,
            adapter=adapter,
            vram=vram,
            beside=beside,
        )
        return one_pass.evaluate(model, data, _limit(max_bytes), learn=learn)
    if beside is not None:
        check_learner(beside)
    elif learn:
        raise ConfigError("--learn is for a coincidence learner, by itself or --beside; this model reads only")
    if spikes.is_spiking(model):
        spikes.refuse(context=context, stride=stride, awake=awake, plot=plot, memory=memory, adapter=adapter)
        return spikes.evaluate(model, data, _limit(max_bytes), beside, learn=learn)
    energies = [as_wish(part) for part in energy.split(",")]
    if beside is not None and len(energies) > 1:
        raise ConfigError("--beside learns how far to be believed while it reads: give one --energy at a time")
    _check_input(model, data, max_bytes)
    check_memory(memory)
    if plot is not None:
        _check_plot(plot, energies)
    wishes = check_wishes(model, energy, awake, False, exit_confidence, exit_memory)
    reading = _Reading(
        context=context,
        stride=stride,
        max_bytes=max_bytes,
        memory=memory,
        vram=vram,
        exact=exact,
        store=chosen_store(store, no_memory),
        cache=cache,
    )
    text = _Text(model, data, reading, wishes, adapter, quiet=as_json)
    if beside is not None:
        text.speaker.accompany(beside, learn=learn)
    settings = [set_to(text.speaker, wishes, wish) for wish in energies]
    first = text.measured(settings[0])
    values = {"model": str(model), "data": data, **first.to_dict()}
    if settings[0] != WHOLE:
        values["setting"] = settings[0].write()
    values |= streamed(text.speaker, values["tokens_read"], values["seconds"])
    if len(energies) > 1:
        return _frontier(text, first, list(zip(energies, settings, strict=True)), values, plot)
    rows = [
        ("bits per byte", f"{values['bits_per_byte']:.4f}"),
        ("perplexity", f"{values['perplexity']:.3f} per token"),
        ("word perplexity", f"{values['word_perplexity']:.2f} (per word and line end, as WikiText is reported)"),
        ("text", f"{format_bytes(values['bytes'])}, {format_count(values['tokens'])} tokens"),
        ("speed", f"{values['tokens_per_second']:.0f} tokens/s, {format_duration(values['seconds'])}"),
        ("cost per token", _cost(values)),
        *((("layers per token", f"{values['layers_per_token']:.2f}"),) if settings[0].leave else ()),
        *((("setting", str(settings[0])),) if settings[0] != WHOLE else ()),
    ]
    return Answer(
        values, aligned(rows), aside=streamed_line(values) if stats and "bytes_read_per_token" in values else ""
    )


def _frontier(
    text: _Text, first: Evaluation, settings: list[tuple[Wish, Setting]], values: dict[str, Any], plot: Path | None
) -> Answer:
    """Every setting beside the others."""
    from pragnosia.measure.frontier import draw_frontier

    found: dict[Setting, Point] = {}
    for wish, setting in settings:  # several energies may come to one
        if setting not in found:
            found[setting] = text.point(wish, setting, text.measured(setting) if found else first)
    points = [replace(found[setting], energy=wish) for wish, setting in settings]
    lines = [in_columns(("energy", *COSTS, "tokens/s")) + "  setting"]
    for one, (_, setting) in zip(points, settings, strict=True):
        row = str(one.energy), *cost_cells(one), f"{one.tokens_per_second:.1f}"
        lines.append(in_columns(row) + f"  {setting}")
    lines.append(f"per token that is decoded, one text at a time; joules by {points[0].joules_source}")
    if plot is not None:
        draw_frontier(points, plot, f"{values['model']}: what sleep costs")
        lines.append(f"drawn: {plot}")
    return Answer(values | {"frontier": [one.to_dict() for one in points]}, lines)


def _check_plot(path: Path, energies: list[Wish]) -> None:
    """Raise ConfigError for a picture that cannot be drawn."""
    if len(energies) < 2:
        raise ConfigError("--plot draws a frontier, which takes several energies: --energy 1,0.5,0.2")
    from pragnosia.measure.pictures import FORMATS

    if path.suffix[1:].lower() not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise ConfigError(f"--plot {path}: a picture's name says what it is written as; end it in one of {endings}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no folder {path.absolute().parent}; make it first")
    if path.is_dir():
        raise ConfigError(f"--plot {path} is a folder; name a picture")


def _check_input(model: Path, data: list[str], max_bytes: str | None) -> None:
    """What can be said of the input before torch is loaded. Raises UserErrors."""
    from pragnosia.data.specs import resolve
    from pragnosia.inference.directory import check_speaker

    _limit(max_bytes)
    check_speaker(model)
    for source in data:
        resolve(source)


def _limit(max_bytes: str | None) -> int | None:
    return None if max_bytes is None else size_of("--max-bytes", max_bytes)


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """How a text is read, as the options have it."""

    context: int | None
    stride: int | None
    max_bytes: str | None
    memory: str | None
    vram: str | None
    exact: bool
    store: Path | bool
    cache: bool


class _Text:
    """A text before a model that is loaded once, to be scored at several settings."""

    def __init__(
        self, model: Path, data: list[str], reading: _Reading, wishes: Wishes, adapter: Path | None, *, quiet: bool
    ) -> None:
        # before the model: a plan counts what is loaded by then
        from pragnosia.data import Joined, resolve
        from pragnosia.inference.loading import load_config
        from pragnosia.measure import evaluation  # noqa: F401
        from pragnosia.measure.scoring import scratch

        context, memory, exact = reading.context, reading.memory, reading.exact
        if context is None and memory is not None:
            context = min(_CONTEXT_IN_BUDGET, load_config(model).max_position_embeddings)
        within: dict[str, Any] = dict(wishes.early)
        if memory is not None:
            shape = load_config(model)
            within["reserve"] = scratch(shape.vocab_size, shape.hidden_size, context or _CONTEXT_IN_BUDGET)
        self.speaker = open_speaker(
            *(model, memory, context, adapter),
            **{"quiet": quiet, "exact": exact, "vram": reading.vram, "store": reading.store, **within},
        )
        self.cache = reading.cache
        self.documents = Joined(tuple(resolve(source) for source in data))
        # window by window as transformers reads a text, and within a budget, whose scratch is for one
        batch = 1 if exact or memory is not None else None
        limit = _limit(reading.max_bytes)
        self.options: dict[str, Any] = {
            "context": context,
            "stride": reading.stride,
            "batch_size": batch,
            "max_bytes": limit,
        }

    def measured(self, setting: Setting) -> Evaluation:
        """The text scored."""
        from pragnosia.measure.evaluation import evaluate as measure_text

        speaker = self.speaker
        mixing = speaker.remembering.mixing(cache=self.cache, leaving=bool(setting.leave))
        return measure_text(
            speaker.model, speaker.tokenizer, self.documents, setting=setting, mixing=mixing, **self.options
        )

    def point(self, energy: Wish, setting: Setting, measured: Evaluation) -> Point:
        """Its quality beside what it costs to decode behind the text's first words."""
        from pragnosia.apps.speaking import counted
        from pragnosia.measure.frontier import point

        words = next(iter(self.documents.documents()))[:_OPENING]
        limit = int(self.speaker.model.config.max_position_embeddings)
        ids = self.speaker.encode(words)[: max(1, limit // 4)]
        return point(self.speaker.model, counted(self.speaker), ids, energy, setting, measured)


def _cost(values: dict[str, Any]) -> str:
    return (
        f"{format_count(values['operations_per_token'])} operations, {format_bytes(values['bytes_per_token'])}, "
        f"{format_joules(values['joules'] / max(values['tokens_read'], 1))} by {values['joules_source']}"
    )
