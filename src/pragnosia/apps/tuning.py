"""`tune`: a model learns from conversations. `merge`: what adapters learned is folded into it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.apps.budgeting import Memory, Vram, budget_of, check_memory
from pragnosia.apps.dialling import left_behind, left_behind_rows
from pragnosia.units import format_bytes, format_count, format_duration, plural

T = TypeVar("T")


@answering
def tune(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model directory, ours or a supported family's.")],
    data: Annotated[
        list[str],
        typer.Option("--data", help="Conversations (.jsonl, .parquet: messages, prompt/completion, …) or texts."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of what is tuned, with log and checkpoints; default runs/MODEL-tuned."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="lora: adapters learn; blocks: the model's own weights do, one block after the other.")
    ] = "lora",
    memory: Memory = None,
    vram: Vram = None,
    rank: Annotated[int | None, typer.Option(help="lora: of the adapters; 8 unless given.")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="lora: an adapter adds alpha / rank times what it says; 16 unless given.")
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="lora: attention, units, dense, separated by commas; all there is unless given."),
    ] = None,
    block_steps: Annotated[
        int | None, typer.Option(help="blocks: steps that a block learns for, in its turn; 20 unless given.")
    ] = None,
    block_units: Annotated[
        int | None, typer.Option(help="blocks: units of a bank in one block; as many as fit unless given.")
    ] = None,
    reset_moments: Annotated[
        bool, typer.Option("--reset-moments", help="blocks: begin every turn with a fresh optimiser.")
    ] = False,
    epochs: Annotated[float, typer.Option(help="How often the conversations are read.")] = 1.0,
    steps: Annotated[int | None, typer.Option(help="Instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows that pass through the model together.")] = 1,
    sequence_length: Annotated[
        int | None, typer.Option(help="Tokens of a row; default 1024, or all the model holds.")
    ] = None,
    accumulation: Annotated[int, typer.Option(help="Batches to a step.")] = 1,
    learning_rate: Annotated[
        float | None, typer.Option(help="At its peak; 2e-4 for adapters, 1e-5 for blocks unless given.")
    ] = None,
    optimiser: Annotated[str, typer.Option(help="adamw, or adamw8bit, whose moments take a quarter of the memory.")] = (
        "adamw"
    ),
    validation_fraction: Annotated[float, typer.Option(help="Share of the conversations that is held out.")] = 0.05,
    learn_prompts: Annotated[bool, typer.Option("--learn-prompts", help="Learn what users say, too.")] = False,
    no_packing: Annotated[bool, typer.Option("--no-packing", help="A row for every conversation.")] = False,
    save_every: Annotated[int, typer.Option(help="Steps from one checkpoint to the next.")] = 20,
    seed: Annotated[int, typer.Option(help="The same seed learns the same.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last good checkpoint in OUT; begin where there is none.")
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="With --memory: say what was here, what was read, and how long it took.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Tune a model within a budget: low-rank adapters on it, or its own weights block by block.

    With `--method lora` the model stays as it is and OUT becomes an adapter in PEFT's format: try it with
    `generate MODEL --adapter OUT`, fold it in with `merge`. With `--method blocks` OUT becomes a model directory.
    """
    check_memory(memory)
    if vram is not None:
        budget_of("--vram", vram)
    _check_method(
        method,
        lora={"--rank": rank, "--alpha": alpha, "--targets": targets},
        blocks={"--block-steps": block_steps, "--block-units": block_units, "--reset-moments": reset_moments or None},
    )
    for name in data:
        if not Path(name).exists():
            from pragnosia.errors import DataError

            raise DataError(f"no such file or folder: {name}")
    from pragnosia.inference.directory import check_speaker
    from pragnosia.tuning.admission import check_directory_of_tensors, check_tunable

    check_directory_of_tensors(model, "tune")
    check_speaker(model)
    if method == "blocks":
        check_tunable(model)
    from pragnosia.inference.loading import load_config
    from pragnosia.training.checkpoint import CheckpointConfig
    from pragnosia.training.optimisers import OptimiserConfig
    from pragnosia.training.progress import Bar
    from pragnosia.training.tuner import tune as run
    from pragnosia.training.tuning import TuneConfig, all_targets
    from pragnosia.tuning.blocks import BlockConfig
    from pragnosia.tuning.configuration import LoraConfig

    shape = load_config(model)
    if targets in (None, "auto"):
        chosen = all_targets(shape) if method == "lora" else LoraConfig().targets
    else:
        chosen = tuple(targets.split(","))
    if sequence_length is None:
        sequence_length = min(1024, shape.max_position_embeddings)
    rate = _or(learning_rate, 2e-4 if method == "lora" else 1e-5)
    config = TuneConfig(
        model=str(model),
        data=data,
        method=method,  # type: ignore[arg-type]
        lora=LoraConfig(rank=_or(rank, 8), alpha=_or(alpha, 16.0), targets=chosen),
        blocks=BlockConfig(steps=_or(block_steps, 20), units=block_units, reset_moments=reset_moments),
        memory=memory,
        vram=vram,
        batch_size=batch_size,
        sequence_length=sequence_length,
        accumulation=accumulation,
        steps=steps,
        epochs=epochs,
        optimiser=OptimiserConfig(name=optimiser, learning_rate=rate, weight_decay=0.0),  # type: ignore[arg-type]
        learn_prompts=learn_prompts,
        packing=not no_packing,
        validation_fraction=validation_fraction,
        seed=seed,
        checkpoint=CheckpointConfig(every=save_every),
    )
    out = out or Path("runs") / f"{model.resolve().name}-tuned"
    report = run(config, out=out, resume=resume, reporter=Bar())
    left = left_behind(model) if method == "blocks" else []  # beside an adapter the model stays as it is
    values = asdict(report) | {"not_carried": left}
    rows = [
        (
            "adapter" if report.blocks is None else "model",
            f"{report.out}, {format_count(report.parameters)} parameters",
        ),
        ("tuned", f"{plural(report.steps, 'step')}, {format_count(report.tokens)} tokens learned"),
        ("loss", f"{report.loss:.4f} nats per token at the end"),
    ]
    if report.blocks is not None:
        most = max(report.blocks.values())
        blocks = f"{len(report.blocks)} of {report.num_blocks} in {plural(report.turns or 0, 'turn')}"
        rows.append(("blocks", f"{blocks}, up to {format_count(most)} parameters each"))
    if report.validation_loss is not None:
        before = "" if report.validation_loss_before is None else f", {report.validation_loss_before:.4f} before"
        rows.append(("held out", f"{report.validation_loss:.4f} nats per token{before}"))
    rows.append(("time", f"{format_duration(report.seconds)}, {report.seconds_per_step:.2f} s per step"))
    if stats and report.hit_rate is not None:
        on_gpu = "" if report.gpu_hit_rate is None else f" ({report.gpu_hit_rate:.0%} on the GPU)"
        rows += [
            ("read", f"{format_bytes(report.bytes_read)} from disk, {report.hit_rate:.0%} of units were here{on_gpu}"),
            ("waiting", f"{format_duration(report.seconds_waiting)} for the disk, validation included"),
        ]
    return Answer(values, aligned([*rows, *left_behind_rows(left, model, report.out)]))


def _check_method(method: str, **options: dict[str, object]) -> None:
    """Raise ConfigError for a method there is not, and for another method's options."""
    from pragnosia.errors import ConfigError, unknown_name

    if method not in options:
        raise ConfigError(unknown_name("method of tuning", method, options))
    for other, given in options.items():
        odd = [name for name, value in given.items() if value is not None]
        if other != method and odd:
            raise ConfigError(f"only --method {other} takes {', '.join(odd)}; leave it out")


def _or(given: T | None, default: T) -> T:
    return default if given is None else given


@answering
def merge(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model directory, ours or a supported family's.")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="An adapter of that model, in PEFT's format.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory to make.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Fold an adapter into its model: a directory of the same family, as large as the model and as fast."""
    from pragnosia.checkpoints.admission import check_vacant
    from pragnosia.inference.directory import check_weights, is_foreign
    from pragnosia.tuning.admission import check_directory_of_tensors, check_mergeable
    from pragnosia.tuning.peft_config import check_adapter

    check_directory_of_tensors(model, "merge")
    is_foreign(model)
    check_mergeable(model)
    check_weights(model)
    check_adapter(adapter)
    check_vacant(out)
    from pragnosia.tuning.merging import merge_adapter

    report = merge_adapter(model, adapter, out)
    strength = f"rank {report.rank}, alpha {report.alpha:g}"
    size = f"{format_count(report.num_parameters)} parameters, {format_bytes(report.num_bytes)}"
    rows = [
        ("merged", f"{adapter} into {model}: {out}"),
        (
            "adapter",
            f"{strength}, {format_count(report.num_adapter_parameters)} parameters",
        ),
        ("changed", f"{report.num_adapted} tensors of {', '.join(report.targets)}"),
        ("size", size),
    ]
    left = left_behind(model)
    return Answer(asdict(report) | {"not_carried": left}, aligned([*rows, *left_behind_rows(left, model, out)]))
