"""`sparsify`: a model that reads less of itself for every token: inputs that sleep, or two of every four weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering, told_at_ctrl_c
from pragnosia.apps.budgeting import bar
from pragnosia.apps.dialling import left_behind, left_behind_rows
from pragnosia.apps.packing import size_rows
from pragnosia.apps.restructured import check_rate
from pragnosia.units import format_bytes, plural

if TYPE_CHECKING:
    from pragnosia.checkpoints.blueprint import Blueprint
    from pragnosia.measure.thresholds import Examples
    from pragnosia.model.cortex import Cortex
    from pragnosia.quantisation.packing import PackReport

PATTERN, VALUES = "2:4", ("bf16", "int8")
_TOKENS = 4096


@answering
def sparsify(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A model directory, ours or a supported family's, or a GGUF file.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory to make.")],
    level: Annotated[
        float | None, typer.Option(help="The share of each layer's inputs that sleep, in [0, 1); no training.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="2:4: of every four neighbouring weights the two largest stay.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="A text to calibrate or recover on; what follows in it is held out. Repeatable."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Of the text to learn from; 4096, or what --recover takes.")
    ] = None,
    share_out: Annotated[
        bool, typer.Option("--share-out", help="With --level: more sleeps where a layer misses it less; takes longer.")
    ] = False,
    recover: Annotated[
        int, typer.Option(min=0, help="With --pattern: steps of training that make up for the loss.")
    ] = 0,
    learning_rate: Annotated[float | None, typer.Option(help="Of the recovery, at its peak; 2e-4.")] = None,
    format: Annotated[  # noqa: A002
        str, typer.Option(help="With --pattern: what kept weights are stored as, bf16 or int8.")
    ] = "bf16",
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Make a model that reads less of itself for every token, and say what that costs.

    With --level the smallest inputs of every linear layer sleep: nothing is trained, and at decode their weights are
    not read. With --pattern 2:4 half of all weights go, the rest is stored and computed with as it lies. Perplexity
    before and after is measured on text held out.
    """
    from pragnosia.checkpoints.admission import check_vacant, check_wide_awake
    from pragnosia.errors import CheckpointError
    from pragnosia.inference.directory import check_speaker, check_weights, is_foreign
    from pragnosia.quantisation.index import is_packed

    _check_choice(level, pattern, data, recover, format, share_out, learning_rate)
    if data:
        check_speaker(source)
    elif not is_foreign(source):
        check_weights(source)
    check_wide_awake(source)
    if is_packed(source):
        raise CheckpointError(f"{source} is packed; sparsify the model it was made from")
    check_vacant(out)
    left = left_behind(source)
    if level is not None:
        values, rows = _put_to_sleep(source, out, level, data or [], tokens or _TOKENS, share_out=share_out)
    else:
        name, training = f"{format}-{PATTERN}", (recover, learning_rate)
        values, rows = _prune(source, out, name, data or [], tokens, training, quiet=as_json)
    return Answer(values | {"not_carried": left}, aligned([*rows, *left_behind_rows(left, source, out)]))


def _check_choice(
    level: float | None,
    pattern: str | None,
    data: list[str] | None,
    recover: int,
    values: str,
    share_out: bool,
    learning_rate: float | None,
) -> None:
    """Raise UserErrors for what can be said before torch is loaded."""
    from pragnosia.data.specs import resolve
    from pragnosia.errors import ConfigError, unknown_name

    if (level is None) == (pattern is None):
        raise ConfigError(
            "say what shall go: --level 0.5 for inputs that sleep, or --pattern 2:4 for weights; one of them"
        )
    if level is not None and not 0 <= level < 1:
        raise ConfigError(f"--level is {level}; it must lie in [0, 1): the share of inputs that sleep")
    if pattern is not None and pattern != PATTERN:
        raise ConfigError(unknown_name("--pattern", pattern, [PATTERN]))
    if values not in VALUES:
        raise ConfigError(unknown_name("--format", values, VALUES))
    if level is not None and (recover or values != "bf16"):
        raise ConfigError("--recover and --format are for --pattern; with --level nothing is trained or rounded")
    if level is None and share_out:
        raise ConfigError("--share-out is for --level")
    if level is not None and not data:
        raise ConfigError("--level needs a text to calibrate on: --data TEXT")
    if recover and not data:
        raise ConfigError("--recover needs a text to train on: --data TEXT")
    check_rate(learning_rate, recover)
    for text in data or []:
        resolve(text)


def _put_to_sleep(
    source: Path, out: Path, level: float, data: list[str], tokens: int, *, share_out: bool
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Thresholds found, examined and written."""
    from dataclasses import replace

    from pragnosia.checkpoints.blueprint import blueprint
    from pragnosia.inference.loading import load_model
    from pragnosia.inference.sparsity import Site, put_to_sleep, sites_of, write_sparsified
    from pragnosia.measure.accounting import account
    from pragnosia.measure.thresholds import calibrated, examine

    print_ = blueprint(source)
    found = _examples(print_, source, data, tokens)
    model = load_model(source)
    precision = str(model.dtype).removeprefix("torch.")
    whole = account(model, precision=precision).bytes_per_token
    before = examine(model, found.held_out).perplexity
    sparsity = calibrated(model, found.seen, level, share_out=share_out)
    after = examine(model, found.held_out)
    sites = {name: Site(site.threshold, after.asleep[name]) for name, site in sparsity.sites.items()}
    put_to_sleep(model, sites)
    write_sparsified(print_, out, replace(sparsity, sites=sites))
    sizes = {name: site.weight.numel() for name, site in sites_of(model).items()}
    share = sum(after.asleep[name] * size for name, size in sizes.items()) / sum(sizes.values())
    read = account(model, precision=precision).bytes_per_token
    values = {
        "source": str(source),
        "out": str(out),
        "level": level,
        "share_out": share_out,
        "asleep": share,
        "perplexity_before": before,
        "perplexity": after.perplexity,
        "bytes_per_token_before": whole,
        "bytes_per_token": read,
        "tokens": found.num_seen,
        "held_out_tokens": found.num_held_out,
    }
    rows = [
        ("sparsified", f"{source} to {out}"),
        ("asleep", f"{share:.1%} of {_counted(model)}, {level:.1%} asked for"),
        *_perplexities(values),
        ("bytes per token", f"{format_bytes(read)}, before {format_bytes(whole)} ({read / whole:.0%})"),
    ]
    return values, rows


def _counted(model: Cortex) -> str:
    """Which weights the share asleep is of: those of units are not among them, since most of them sleep anyway."""
    organ = model.config.units
    if organ is None:
        return "the layers' weights"
    kind = "columns" if model.config.columns is not None else "units"
    return f"the layers' weights beside the {kind} (of which {organ.thalamus.num_awake} of {organ.num_units} wake)"


def _prune(
    source: Path,
    out: Path,
    name: str,
    data: list[str],
    tokens: int | None,
    training: tuple[int, float | None],
    *,
    quiet: bool,
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Two of every four weights kept, with or without a training (steps, their rate), and packed."""
    from dataclasses import asdict

    from pragnosia.checkpoints.blueprint import blueprint
    from pragnosia.inference.loading import load_model
    from pragnosia.measure.thresholds import examine
    from pragnosia.quantisation.packing import check_widths, pack_model
    from pragnosia.quantisation.sizes import packing_format
    from pragnosia.training.recovery import BATCH_TOKENS

    recover, _ = training
    print_ = blueprint(source)
    check_widths(print_, packing_format(name))
    found, before = None, 0.0
    if data:
        found = _examples(print_, source, data, tokens or max(_TOKENS, recover * BATCH_TOKENS))
        before = examine(load_model(source), found.held_out).perplexity
    if recover and found is not None:
        report = _recovered(print_, source, out, name, found, training, quiet=quiet)
    else:
        stays = f"what is done stays in {out.name}.partial, and the same command goes on from there"
        with told_at_ctrl_c(stays), bar("pruning", quiet=quiet) as progress:
            report = pack_model(print_, out, name, progress=progress)
    values: dict[str, Any] = {
        **asdict(report),
        "source": str(source),
        "pattern": PATTERN,
        "recover": recover,
        "out": str(out),
    }
    rows = [
        ("sparsified", f"{source} to {out} as {name}, {plural(recover, 'step')} of recovery"),
        *size_rows(report),
    ]
    if found is not None:
        after = examine(load_model(out), found.held_out).perplexity
        values |= {"perplexity_before": before, "perplexity": after}
        values |= {"tokens": found.num_seen, "held_out_tokens": found.num_held_out}
        rows += _perplexities(values)
    else:
        rows.append(("quality", f"not measured; give --data TEXT, or: pragnosia eval {source} and {out} --data TEXT"))
    return values, rows


def _recovered(
    print_: Blueprint,
    source: Path,
    out: Path,
    name: str,
    found: Examples,
    training: tuple[int, float | None],
    *,
    quiet: bool,
) -> PackReport:
    """A model trained while it is pruned, then packed: whole at `out` or not at all."""
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    import torch
    from transformers.utils import logging as transformers_logging

    from pragnosia.checkpoints.blueprint import blueprint
    from pragnosia.checkpoints.travel import carry
    from pragnosia.inference.loading import load_model
    from pragnosia.quantisation.packing import pack_model
    from pragnosia.training.recovery import LEARNING_RATE, recover

    steps, rate = training
    model: Any = load_model(source, torch.float32)
    with bar("recovering", quiet=quiet, counts=True) as progress:
        recover(model, found.seen, steps, learning_rate=rate or LEARNING_RATE, progress=progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        plain, packed = Path(scratch) / "plain", Path(scratch) / "packed"
        for tensor_name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor_name in print_.shapes:  # some stay in single precision
                tensor.data = tensor.data.to(print_.dtype(tensor_name))
        transformers_logging.disable_progress_bar()  # of shards: ours has told what takes time
        model.save_pretrained(plain)
        carry(source, plain)
        report = pack_model(blueprint(plain), packed, name)
        packed.replace(out)
    return replace(report, out=str(out))


def _examples(print_: Blueprint, source: Path, data: list[str], tokens: int) -> Examples:
    from pragnosia.data import Joined, resolve
    from pragnosia.inference.loading import load_tokenizer
    from pragnosia.measure.thresholds import examples

    config = print_.config
    vocabulary, context = int(config.vocab_size), int(config.max_position_embeddings)
    text = Joined(tuple(resolve(part) for part in data))
    tokenizer = load_tokenizer(source, vocabulary, config.tokenizer_digest)
    return examples(tokenizer, text, tokens=tokens, vocab_size=vocabulary, context=context)


def _perplexities(values: dict[str, Any]) -> list[tuple[str, str]]:
    before, after = values["perplexity_before"], values["perplexity"]
    return [
        ("perplexity", f"{after:.3f}, before {before:.3f} ({after / before - 1:+.1%})"),
        ("measured on", f"{values['held_out_tokens']} tokens held out, after {values['tokens']} learned from"),
    ]
