"""`sleep`: what a model was told becomes what it knows, in slots of its own long-term memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.apps.budgeting import bar
from pragnosia.apps.dialling import left_behind, left_behind_rows
from pragnosia.units import format_count, format_duration

if TYPE_CHECKING:
    from pragnosia.training.sleep import SleepReport

_ENDED = {
    "recall": "as many are known as were asked for",
    "bound": "more would cost the old text more than the bound",
    "rounds": "more rounds would be needed (--rounds), or bring nothing",
}


@answering
def sleep(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model directory with long-term memory.")],
    store: Annotated[Path | None, typer.Option(help="A folder with what was taught; default MODEL/episodes.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="A directory to make, model and store; default runs/MODEL-rested.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="Old text that it shall not forget; default what its run learned from. Repeatable."
        ),
    ] = None,
    recall: Annotated[float, typer.Option(help="The share of the lessons to know by heart; then it wakes.")] = 0.95,
    bound: Annotated[
        float, typer.Option(help="Nats per token by which the loss on old text may rise; a round past it is undone.")
    ] = 0.05,
    most: Annotated[
        int | None, typer.Option(help="Lessons to replay: those that surprised most and were taught most; default all.")
    ] = None,
    slots: Annotated[int, typer.Option(help="Slots that a lesson may write to: those most its own.")] = 256,
    rounds: Annotated[int, typer.Option(help="Times that the lessons are replayed, at most.")] = 80,
    rate: Annotated[float, typer.Option(help="Of a step.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="The same seed sleeps the same.")] = 0,
    forget_store: Annotated[
        bool, typer.Option("--forget-store", help="OUT gets no store: what is not in its slots then is gone from it.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Replay what a model was taught into slots of its long-term memory, until it knows it without the store.

    Only slots that are a lesson's own change, and what that costs on old text is measured and bounded. MODEL and its
    store stay as they are: OUT is a model of its own, with a store in which the lessons it knows are marked.
    """
    from dataclasses import asdict

    from pragnosia.checkpoints.admission import check_vacant, check_wide_awake
    from pragnosia.data.mixture import Mixture
    from pragnosia.inference.directory import check_directory, require_tokenizer
    from pragnosia.tuning.admission import check_directory_of_tensors, check_tunable

    check_directory_of_tensors(model, "sleep")
    check_directory(model)
    check_tunable(model)
    check_wide_awake(model)
    require_tokenizer(model)
    place = out or Path("runs") / f"{model.resolve().name}-rested"
    check_vacant(place)
    if data:
        Mixture.parse(data)
    from pragnosia.training.replay import ReplayConfig
    from pragnosia.training.sleep import sleep as run

    config = ReplayConfig(recall=recall, bound=bound, most=most, slots=slots, rounds=rounds, rate=rate, seed=seed)
    with bar("sleeping", quiet=as_json, counts=True, lines=True) as progress:
        report = run(
            model, place, store=store, data=data or (), config=config, keep_store=not forget_store, progress=progress
        )
    left = left_behind(model)
    return Answer(
        asdict(report) | {"not_carried": left}, aligned([*_rows(report), *left_behind_rows(left, model, place)])
    )


def _rows(report: SleepReport) -> list[tuple[str, str]]:
    rise = report.old_loss - report.old_loss_before
    kept = f"{report.lessons} in {report.out}/episodes, those it knows marked" if report.keeps_store else "forgotten"
    values: dict[str, Any] = {
        "rested": f"{report.source} to {report.out}, {format_duration(report.seconds)}",
        "known": f"{report.known} of {report.replayed} lessons without the store, {report.known_before} before",
        "ended": f"after {report.rounds} rounds, {report.undone} undone: {_ENDED[report.ended]}",
        "slots": f"{format_count(report.slots_written)} of {format_count(report.slots)} written",
        "old text": f"{report.old_loss:.4f} nats per token, {report.old_loss_before:.4f} before ({rise:+.4f}, "
        f"at most {report.bound:+g})",
        "store": kept,
    }
    return list(values.items())
