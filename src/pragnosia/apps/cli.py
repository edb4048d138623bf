"""The command line: each verb one thought. Nothing heavy is imported until a verb needs it.

Exit codes: 0 done, 2 the input can be mended, 1 something failed, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from pragnosia import __version__
from pragnosia.apps import (
    calibrating,
    evaluating,
    growing,
    lobes,
    models,
    packing,
    planning,
    pruning,
    remembering,
    selecting,
    simulating,
    sleeping,
    sparsifying,
    speaking,
    spikes,
    training,
    tuning,
    upcycling,
)

app = typer.Typer(
    name="pragnosia",
    help="Language models built like brains: large in total, small at work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
memory = typer.Typer(help="What a model was taught: its size, its travels.", no_args_is_help=True)
tokenizer = typer.Typer(help="Tokenizers: text to ids and back.", no_args_is_help=True)

app.command("train")(training.train)
app.command("generate")(speaking.generate)
app.command("chat")(speaking.chat)
app.command("eval")(evaluating.evaluate)
app.command("calibrate")(calibrating.calibrate)
app.command("compare")(training.compare)
app.command("inspect")(models.inspect)
app.command("import")(models.import_model)
app.command("export")(models.export_model)
app.command("pack")(packing.pack)
app.command("sparsify")(sparsifying.sparsify)
app.command("grow")(growing.grow)
app.command("prune")(pruning.prune)
app.command("upcycle")(upcycling.upcycle)
app.command("tune")(tuning.tune)
app.command("merge")(tuning.merge)
app.command("plan")(planning.plan)
app.command("teach")(remembering.teach)
app.command("recall")(remembering.recall)
app.command("forget")(remembering.forget)
app.command("lobes")(lobes.lobes)
app.command("sleep")(sleeping.sleep)
app.command("select")(selecting.select)
app.command("simulate")(simulating.simulate)
app.command("energy")(spikes.energy)
app.command("raster")(simulating.raster)
app.command("doctor")(models.doctor)
app.add_typer(memory, name="memory")
memory.command("stats")(remembering.stats)
memory.command("export")(remembering.export_store)
memory.command("import")(remembering.import_store)
memory.command("compact")(remembering.compact)
app.add_typer(tokenizer, name="tokenizer")
tokenizer.command("train")(training.train_tokenizer)

# Typer bundles the click it stands on; its errors are reached through the one class it makes public.
_SEVERAL = ("--data", "--set", "--pool")

UsageError: type[Exception] = typer.BadParameter.__bases__[0]


@app.callback(invoke_without_command=True)
def root(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    """Options that stand before any command."""
    if version:
        print(f"pragnosia {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = spread_out(sys.argv[1:] if arguments is None else arguments)
    try:
        outcome = app(args=given, prog_name="pragnosia", standalone_mode=False)
    except UsageError as error:
        return _usage(error)
    except typer.Abort:
        print("pragnosia: interrupted", file=sys.stderr)
        return 130
    return outcome if isinstance(outcome, int) else 0


def spread_out(arguments: list[str]) -> list[str]:
    """`--data A B` as `--data A --data B`: an option that may be repeated takes several values at once, too."""
    spread: list[str] = []
    option, taken = None, False
    for word in arguments:
        if word.startswith("-") or option is None:
            option, taken = (word if word in _SEVERAL else None), False
        else:
            if taken:
                spread.append(option)
            taken = True
        spread.append(word)
    return spread


def _usage(error: Exception) -> int:
    """A wrong command line: what was wrong and where to look, in one line."""
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "pragnosia"
    message = " ".join(getattr(error, "format_message", lambda: str(error))().split())
    if not message:  # a group without a command has printed its help
        return 2
    print(f"pragnosia: {message.rstrip('.')}. See: {where} --help", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
