"""`tune`: a frozen model learns from conversations. `merge`: what it learned is folded into it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.apps.budgeting import Memory, Stats, check_memory
from pragnosia.units import format_bytes, format_count, format_duration


@answering
def tune(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model directory, ours or a supported family's.")],
    data: Annotated[
        list[str],
        typer.Option("--data", help="Conversations (.jsonl, .parquet: messages, prompt/completion, …) or texts."),
    ],
    out: Annotated[Path, typer.Option(help="The adapter's directory, with the run's log and checkpoints.")],
    memory: Memory = None,
    rank: Annotated[int, typer.Option(help="Of the adapters.")] = 8,
    alpha: Annotated[float, typer.Option(help="An adapter adds alpha / rank times what it says.")] = 16.0,
    targets: Annotated[
        str, typer.Option(help="What is adapted: attention, units, dense, separated by commas; auto is all there is.")
    ] = "auto",
    epochs: Annotated[float, typer.Option(help="How often the conversations are read.")] = 1.0,
    steps: Annotated[int | None, typer.Option(help="Instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows that pass through the model together.")] = 1,
    sequence_length: Annotated[
        int | None, typer.Option(help="Tokens of a row; default 1024, or all the model holds.")
    ] = None,
    accumulation: Annotated[int, typer.Option(help="Batches to a step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="At its peak.")] = 2e-4,
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
    stats: Stats = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Tune a model: low-rank adapters learn, the model stays as it is, and on disk if there is a budget.

    OUT becomes an adapter in PEFT's format: try it with `generate MODEL --adapter OUT`, fold it in with `merge`.
    """
    check_memory(memory)
    for name in data:
        if not Path(name).exists():
            from pragnosia.errors import DataError

            raise DataError(f"no such file or folder: {name}")
    from pragnosia.inference.directory import check_speaker

    check_speaker(model)
    from pragnosia.inference.loading import load_config
    from pragnosia.training.checkpoint import CheckpointConfig
    from pragnosia.training.optimisers import OptimiserConfig
    from pragnosia.training.progress import Bar
    from pragnosia.training.tuner import tune as run
    from pragnosia.training.tuning import TuneConfig, all_targets
    from pragnosia.tuning.configuration import LoraConfig

    shape = load_config(model)
    chosen = all_targets(shape) if targets == "auto" else tuple(targets.split(","))
    if sequence_length is None:
        sequence_length = min(1024, shape.max_position_embeddings)
    config = TuneConfig(
        model=str(model),
        data=data,
        lora=LoraConfig(rank=rank, alpha=alpha, targets=chosen),
        memory=memory,
        batch_size=batch_size,
        sequence_length=sequence_length,
        accumulation=accumulation,
        steps=steps,
        epochs=epochs,
        optimiser=OptimiserConfig(name=optimiser, learning_rate=learning_rate, weight_decay=0.0),  # type: ignore[arg-type]
        learn_prompts=learn_prompts,
        packing=not no_packing,
        validation_fraction=validation_fraction,
        seed=seed,
        checkpoint=CheckpointConfig(every=save_every),
    )
    report = run(config, out=out, resume=resume, reporter=Bar())
    values = asdict(report)
    rows = [
        ("adapter", f"{report.out}, {format_count(report.parameters)} parameters"),
        ("tuned", f"{report.steps} steps, {format_count(report.tokens)} tokens learned"),
        ("loss", f"{report.loss:.4f} nats per token at the end"),
    ]
    if report.validation_loss is not None:
        before = "" if report.validation_loss_before is None else f", {report.validation_loss_before:.4f} before"
        rows.append(("held out", f"{report.validation_loss:.4f} nats per token{before}"))
    rows.append(("time", f"{format_duration(report.seconds)}, {report.seconds_per_step:.2f} s per step"))
    if stats and report.hit_rate is not None:
        rows.append(("read", f"{format_bytes(report.bytes_read)} from disk, {report.hit_rate:.0%} of units were here"))
    return Answer(values, aligned(rows))


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
    from pragnosia.tuning.admission import check_mergeable
    from pragnosia.tuning.peft_config import check_adapter

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
    return Answer(asdict(report), aligned(rows))
