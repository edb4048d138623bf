"""`pack`: a model becomes smaller on disk and in memory, each unit one record that is read alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps import spikes
from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering, told_at_ctrl_c
from pragnosia.apps.budgeting import PACKED, bar, check_memory
from pragnosia.apps.dialling import left_behind, left_behind_rows
from pragnosia.errors import CheckpointError, ConfigError, UserError
from pragnosia.units import GIB, KIB, format_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from pragnosia.data import Joined
    from pragnosia.inference.speaker import Pragnosia
    from pragnosia.measure.evaluation import Evaluation
    from pragnosia.quantisation.packing import PackReport

_TEXT = "default"
_LITTLE = 4 * KIB  # of text; each window reads a model on disk once
_MUCH = 0.05  # of a packed model: room between units that is told
_WINDOW = 512  # tokens that are read at once
_KL_TOKENS, _TOGETHER = 512, 64  # of the text, whose every logit is compared; and those whose logits are held at once


@answering
def pack(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A model directory, ours or a supported family's, or a GGUF file.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory to make.")],
    format: Annotated[str, typer.Option(help=f"{PACKED}.")] = "int4",  # noqa: A002
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Texts on which to measure what packing lost; a little of `default` unless given."),
    ] = None,
    no_quality: Annotated[
        bool,
        typer.Option("--no-quality", help="Do not measure what packing lost: both models would be read once more."),
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="A text on which to see which inputs matter; rounding errs on the others."),
    ] = None,
    calibrate_tokens: Annotated[int, typer.Option(min=1, help="Of the text, from its beginning.")] = 4096,
    memory: Annotated[
        str | None, typer.Option(help="With --calibrate or --data: a budget for the process that runs SOURCE.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Pack a model: units as records, matrices in few bits. The same command goes on where it was stopped.

    With --calibrate the model first reads a text, and the rounding of each matrix is chosen for the inputs it had
    there. In the end the packed model is compared with the source on a text: perplexity of both, and the mean KL
    divergence. Without --data and --memory that text is short, and both are read from disk within 1 GiB and a shard.
    A spiking language model is packed to int8, uncalibrated.
    """
    if memory is not None and calibrate is None and not data:
        raise ConfigError("--memory is for --calibrate and --data; packing itself holds one unit at a time")
    if no_quality and data:
        raise ConfigError("--no-quality measures nothing, --data is what to measure on; leave one of them out")
    if spikes.is_spiking(source):
        spikes.refuse(calibrate=calibrate, memory=memory)
        return spikes.pack(source, out, format, data, measured=not no_quality)
    check_memory(memory)
    _check(source, out, tokenized=calibrate is not None)
    from pragnosia.checkpoints.blueprint import blueprint
    from pragnosia.quantisation.packing import check_calibrated, pack_model

    calibration = None
    if calibrate is not None:
        from pragnosia.data import resolve
        from pragnosia.measure.calibration import calibrate as calibrated

        check_calibrated(format)
        calibration = calibrated(source, resolve(calibrate), tokens=calibrate_tokens, memory=memory)
    stays = f"what is packed stays in {out.name}.partial, and the same command goes on from there"
    with told_at_ctrl_c(stays), bar("packing", quiet=as_json) as progress:
        report = pack_model(blueprint(source), out, format, calibration=calibration, progress=progress)
    left = left_behind(source)
    values: dict[str, Any] = {"source": str(source), **asdict(report), "not_carried": left}
    rows = [
        ("packed", f"{source} to {out} as {format}{', resumed' if report.resumed else ''}"),
        *size_rows(report),
    ]
    if calibration is not None:
        values["calibration"] = calibration.note()
        rows.append(("calibrated on", f"{calibration.num_tokens} tokens of {calibrate}"))
    try:
        with told_at_ctrl_c(f"{out} is packed and whole; only what packing lost was not measured to its end"):
            lost = _loss(source, out, data, memory) if data else {} if no_quality else _loss_on_little(source, out)
    except UserError as error:
        if data:
            raise
        rows.append(("quality", f"not measured: {error}"))
        lost = {}
    if lost:
        rows += [
            ("bits per byte", f"{lost['packed_bits_per_byte']:.4f}, of the source {lost['source_bits_per_byte']:.4f}"),
            ("perplexity", f"{lost['packed_perplexity']:.3f}, of the source {lost['source_perplexity']:.3f}"),
            ("KL divergence", f"{lost['kl_divergence']:.4g} nats per token"),
            ("measured on", _measured_on(lost, data or [_TEXT])),
        ]
    return Answer(values | lost, aligned([*rows, *left_behind_rows(left, source, out)]))


def _check(source: Path, out: Path, *, tokenized: bool) -> None:
    """That a model can be packed. Raises CheckpointError."""
    from pragnosia.checkpoints.admission import check_vacant
    from pragnosia.inference.directory import check_weights, is_foreign, require_tokenizer
    from pragnosia.quantisation.index import is_packed

    is_foreign(source)
    if is_packed(source):
        raise CheckpointError(f"{source} is packed already; pack the model it was made from")
    check_weights(source)
    check_vacant(out)
    if tokenized:
        require_tokenizer(source)


def _measured_on(lost: dict[str, Any], data: Sequence[str]) -> str:
    """How much of which text each figure stands for."""
    text = f"{format_bytes(lost['text_bytes'])} of {', '.join(data)}: {lost['text_tokens']} tokens"
    few = lost["kl_tokens"] < lost["text_tokens"]
    return f"{text}, of which the divergence compares the first {lost['kl_tokens']}" if few else text


def size_rows(report: PackReport) -> list[tuple[str, str]]:
    """What a packed model takes; room between small units is told where it is a twentieth or more."""
    padding, size = report.padding_bytes, report.num_bytes
    rows = [
        ("size", f"{format_bytes(size)} of {format_bytes(report.source_bytes)}"),
        ("bits per weight", f"{report.bits_per_weight:.2f}"),
    ]
    if padding >= _MUCH * size:
        told = f"{format_bytes(padding)} of it ({padding / size:.0%}) between units: each begins on a page of 4 KiB"
        rows.append(("padding", f"{told}, to be one read"))
    return rows


def _loss_on_little(source: Path, packed: Path) -> dict[str, Any]:
    """What packing lost on a short text, in as little memory as packing itself takes. Raises UserErrors."""
    from pragnosia.inference.directory import require_tokenizer

    require_tokenizer(source)
    shard = max((file.stat().st_size for file in source.glob("*.safetensors")), default=0) if source.is_dir() else 0
    return _loss(source, packed, [_TEXT], shard + GIB, _LITTLE)


def _loss(
    source: Path, packed: Path, data: Sequence[str], memory: str | int | None, text_bytes: int = 64 * KIB
) -> dict[str, Any]:
    """What packing lost, on a text: one model after the other, within a budget if there is one.

    What the source thinks likely waits on disk, beside the packed model, until that has been asked the same.
    """
    values: dict[str, Any] = {}
    divergence, count = 0.0, 0
    with TemporaryFile(dir=packed.parent) as kept:
        for name, folder in (("source", source), ("packed", packed)):
            speaker, text, context = _opened(folder, data, memory)
            one = None if memory is None else 1  # window at once: what a plan has scratch for
            read = {"context": context, "batch_size": one, "max_bytes": text_bytes}
            found = _evaluated(speaker, text, read)
            values[f"{name}_bits_per_byte"], values[f"{name}_perplexity"] = found.bits_per_byte, found.perplexity
            kept.seek(0)
            for ours in _beliefs(speaker, text, context):
                if name == "source":
                    kept.write(ours.numpy().tobytes())
                else:
                    truth = _next_of(kept, ours)
                    divergence, count = divergence + float((truth.exp() * (truth - ours)).sum()), count + len(ours)
            del speaker  # a plan counts what is there, and the model before this one should not be
    values |= {"kl_divergence": divergence / max(count, 1), "kl_tokens": count}
    return values | {"text_bytes": found.bytes, "text_tokens": found.tokens}


def _opened(folder: Path, data: Sequence[str], memory: str | int | None) -> tuple[Pragnosia, Joined, int]:
    """A model, a text for it, and the tokens of it that are read at once."""
    import gc

    from pragnosia.data import Joined, resolve
    from pragnosia.inference.loading import load_config
    from pragnosia.inference.speaker import Pragnosia
    from pragnosia.measure import evaluation  # noqa: F401  (before the model: a plan counts what is there)
    from pragnosia.measure.scoring import scratch

    gc.collect()
    shape = load_config(folder)
    context = min(shape.max_position_embeddings, _WINDOW)
    # beside scoring: what both models think likely of some tokens, and what is made of it
    reserve = scratch(shape.vocab_size, shape.hidden_size, context) + 5 * 4 * _TOGETHER * shape.vocab_size
    within: dict[str, Any] = {} if memory is None else {"memory": memory, "context": context, "reserve": reserve}
    return Pragnosia.from_pretrained(folder, **within), Joined(tuple(resolve(part) for part in data)), context


def _evaluated(speaker: Pragnosia, text: Joined, options: dict[str, Any]) -> Evaluation:
    from pragnosia.measure.evaluation import evaluate

    return evaluate(speaker.model, speaker.tokenizer, text, **options)


def _beliefs(speaker: Pragnosia, text: Joined, context: int) -> Iterator[Tensor]:
    """Log-probabilities (N, V) after each of a text's first tokens, some at once; what was read at once forgets."""
    import torch

    ids = speaker.encode("".join(text.documents())[: 8 * _KL_TOKENS])[:_KL_TOKENS]
    for start in range(0, len(ids), context):
        with torch.inference_mode():
            window = torch.tensor([ids[start : start + context]])
            states = speaker.model.model(window, use_cache=False).last_hidden_state[0]
            for rows in states.split(_TOGETHER):
                yield speaker.model.lm_head(rows).float().log_softmax(-1)


def _next_of(kept: IO[bytes], like: Tensor) -> Tensor:
    """The next numbers of a file, as many as `like` has."""
    import torch

    return torch.frombuffer(bytearray(kept.read(like.nbytes)), dtype=like.dtype).view_as(like)
