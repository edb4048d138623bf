"""`train`, `compare`, `tokenizer train`: where weights come from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pragnosia.apps import one_pass
from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.training.settings import read_settings
from pragnosia.units import format_bytes, format_count, format_duration

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, see configs/.")]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", help="Texts instead of the config's: files, directories, recipes or default; repeatable."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, as in optimiser.learning_rate=1e-3."),
]


@answering
def train(
    config: Config,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="The run's directory; default runs/ and the config's name.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last good checkpoint in OUT; begin where there is none.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Draw loss, use of units, births and deaths in the terminal while it goes.")
    ] = False,
    rule: Annotated[
        str | None, typer.Option("--rule", help="How it learns, as --set rule=…; docs/learning.md has a table.")
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Train a model. The run's directory is a model directory, with its log, curves and checkpoints beside it."""
    settings = [*(settings or []), *([] if rule is None else [f"rule={rule}"])]
    _check_input([config], data, settings)
    once = read_settings(config, settings)
    if one_pass.trains_once(once):
        one_pass.refuse(resume=resume, watch=watch, rule=rule)
        return one_pass.train(once, out or Path("runs") / Path(config).stem, data or [])
    from pragnosia.training.log import LOG
    from pragnosia.training.progress import Bar
    from pragnosia.training.trainer import train as run
    from pragnosia.training.watching import Watch

    folder = out or Path("runs") / Path(config).stem
    report = run(
        config,
        data=data or (),
        out=folder,
        resume=resume,
        overrides=settings,
        reporter=Watch(folder / LOG) if watch else Bar(),
    )
    values = asdict(report)
    rows = [
        ("model", values["out"]),
        ("trained", f"{values['steps']} steps, {format_count(values['tokens'])} tokens"),
        ("bits per byte", f"{values['bits_per_byte']:.4f} on {_scored_on(folder)}"),
        ("speed", f"{values['tokens_per_second']:.0f} tokens/s, {format_duration(values['seconds'])}"),
    ]
    return Answer(values, aligned(rows))


def _check_input(configs: list[str], data: list[str] | None, settings: list[str] | None) -> None:
    """What can be said of the input before torch is loaded. Raises UserErrors."""
    from pragnosia.data.domains import read_domains
    from pragnosia.data.mixture import Mixture

    read = [read_settings(config, settings or []) for config in configs]
    if data:
        labelled = any(values.get("lobes") is not None for values in read)
        read_domains(data) if labelled else Mixture.parse(data)


def _scored_on(folder: Path) -> str:
    """What a run's last figure is of: held-out text, or where none was held out what it learned from."""
    from pragnosia.training.log import LOG, read_log

    held = any("validation_bits_per_byte" in record for record in read_log(folder / LOG))
    return "held-out text" if held else "the text it learned from: nothing was held out"


@answering
def compare(
    configs: Annotated[list[str], typer.Argument(metavar="CONFIG...", help="YAML files, one per arm.")],
    data: Data = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per arm.")] = 3,
    out: Annotated[Path, typer.Option(help="Where the table, its JSON, the picture and the runs go.")] = Path(
        "runs/compare"
    ),
    settings: Settings = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Train several models on the same tokens in the same order and set them side by side.

    One arm is always a dense model of equal active compute; every arm's learning rate is swept alike.
    """
    _check_input(configs, data, settings)
    from pragnosia.training.compare import compare as run
    from pragnosia.training.progress import Bar

    report = run(configs, data=data, seeds=seeds, out=out, overrides=settings or [], reporter=Bar())
    return Answer(report.to_dict(), report.table())


@answering
def train_tokenizer(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="Texts to learn from.")],
    vocab_size: Annotated[int, typer.Option(help="Entries wanted, special ones included.")],
    out: Annotated[Path, typer.Option(help="A directory to make.")],
    temperature: Annotated[
        float | None,
        typer.Option(help="FILES give text by size^(1/T): 1 is in proportion, more is more alike; default equal."),
    ] = None,
    characters: Annotated[
        bool, typer.Option("--characters", help="A token is a character, no more; rare ones are bytes.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the tokenizer that OUT holds.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Train a tokenizer: byte-level BPE, or with --characters one of characters; of bytes with --vocab-size 260."""
    from pragnosia.data.specs import resolve
    from pragnosia.errors import DataError

    if (out / "tokenizer.json").exists() and not force:
        raise DataError(f"{out} already holds a tokenizer; choose another --out, or add --force to replace it")
    for file in files:
        resolve(file)
    from pragnosia.data.tokenizer_training import train_tokenizer as learn

    report = learn(files, vocab_size, out, kind="characters" if characters else "bpe", temperature=temperature)
    rows = [
        ("tokenizer", report.out),
        ("vocabulary", f"{report.vocab_size} of {report.requested_vocab_size} asked for"),
        ("trained on", f"{format_bytes(report.trained_bytes)} in {format_duration(report.seconds)}"),
        ("bytes per token", f"{report.bytes_per_token:.3f}"),
    ]
    rows += [
        (f"  {part.name}", f"{part.bytes_per_token:.3f}{' held out' if part.held_out else ''}")
        for part in report.measurements
    ]
    return Answer(report.to_dict(), aligned(rows))
