"""`pack`: a model becomes smaller on disk and in memory, each unit one record that is read alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.apps.budgeting import bar, check_memory
from pragnosia.apps.dialling import left_behind, left_behind_rows
from pragnosia.errors import UserError
from pragnosia.units import GIB, KIB, format_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from pragnosia.measure.evaluation import Evaluation

_TEXT = "default"
_LITTLE = 4 * KIB  # of text; each window reads a model on disk once
_WINDOW, _KL_IN_BUDGET = 512, 64  # tokens, of which all logits are held


@answering
def pack(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A model directory, ours or a supported family's, or a GGUF file.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory to make.")],
    format: Annotated[str, typer.Option(help="bf16, int8, int4, int3, int2, nf4, bf16-2:4 or int8-2:4.")] = "int4",  # noqa: A002
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
    """
    from pragnosia.checkpoints.admission import check_vacant
    from pragnosia.errors import CheckpointError, ConfigError
    from pragnosia.inference.directory import check_weights, is_foreign, require_tokenizer
    from pragnosia.quantisation.index import is_packed

    check_memory(memory)
    if memory is not None and calibrate is None and not data:
        raise ConfigError("--memory is for --calibrate and --data; packing itself holds one unit at a time")
    if no_quality and data:
        raise ConfigError("--no-quality measures nothing, --data is what to measure on; leave one of them out")
    is_foreign(source)
    if is_packed(source):
        raise CheckpointError(f"{source} is packed already; pack the model it was made from")
    check_weights(source)
    check_vacant(out)
    if calibrate is not None:
        require_tokenizer(source)
    from pragnosia.checkpoints.blueprint import blueprint
    from pragnosia.quantisation.packing import check_calibrated, pack_model

    calibration = None
    if calibrate is not None:
        from pragnosia.data import resolve
        from pragnosia.measure.calibration import calibrate as calibrated

        check_calibrated(format)
        calibration = calibrated(source, resolve(calibrate), tokens=calibrate_tokens, memory=memory)
    with bar("packing", quiet=as_json) as progress:
        report = pack_model(blueprint(source), out, format, calibration=calibration, progress=progress)
    left = left_behind(source)
    values: dict[str, Any] = {"source": str(source), **asdict(report), "not_carried": left}
    rows = [
        ("packed", f"{source} to {out} as {format}{', resumed' if report.resumed else ''}"),
        ("size", f"{format_bytes(report.num_bytes)} of {format_bytes(report.source_bytes)}"),
        ("bits per weight", f"{report.bits_per_weight:.2f}"),
    ]
    if calibration is not None:
        values["calibration"] = calibration.note()
        rows.append(("calibrated on", f"{calibration.num_tokens} tokens of {calibrate}"))
    try:
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
            ("KL divergence", f"{lost['kl_divergence']:.4g} nats per token, over {lost['kl_tokens']} tokens"),
            ("measured on", f"{format_bytes(lost['text_bytes'])} of {', '.join(data or [_TEXT])}"),
        ]
    return Answer(values | lost, aligned([*rows, *left_behind_rows(left, source, out)]))


def _loss_on_little(source: Path, packed: Path) -> dict[str, Any]:
    """What packing lost on a short text, in as little memory as packing itself takes. Raises UserErrors."""
    from pragnosia.inference.directory import require_tokenizer

    require_tokenizer(source)
    shard = max((file.stat().st_size for file in source.glob("*.safetensors")), default=0) if source.is_dir() else 0
    return _loss(source, packed, [_TEXT], shard + GIB, _LITTLE)


def _loss(
    source: Path, packed: Path, data: Sequence[str], memory: str | int | None, text_bytes: int = 64 * KIB
) -> dict[str, Any]:
    """What packing lost, on a text: one model after the other, within a budget if there is one."""
    values: dict[str, Any] = {}
    logarithms = []
    for name, folder in (("source", source), ("packed", packed)):
        found, its = _read(folder, data, memory, text_bytes)
        values[f"{name}_bits_per_byte"], values[f"{name}_perplexity"] = found.bits_per_byte, found.perplexity
        logarithms.append(its)
    truth, ours = logarithms
    values["kl_divergence"] = float((truth.exp() * (truth - ours)).sum(-1).mean())
    values["kl_tokens"], values["text_bytes"] = len(truth), found.bytes
    return values


def _read(folder: Path, data: Sequence[str], memory: str | int | None, text_bytes: int) -> tuple[Evaluation, Tensor]:
    """How a model does on a text, and its log-probabilities (T, V) at the text's beginning."""
    import gc

    import torch

    from pragnosia.data import Joined, resolve
    from pragnosia.inference.loading import load_config
    from pragnosia.inference.speaker import Pragnosia
    from pragnosia.measure.evaluation import evaluate
    from pragnosia.measure.scoring import scratch

    gc.collect()  # a plan counts what is there, and the model before this one should not be
    shape = load_config(folder)
    limit = min(shape.max_position_embeddings, _WINDOW)
    whole = limit if memory is None else min(limit, _KL_IN_BUDGET)
    # beside scoring: the logits of both models, and what is made of them
    reserve = scratch(shape.vocab_size, shape.hidden_size, limit) + 5 * 4 * whole * shape.vocab_size
    within: dict[str, Any] = {} if memory is None else {"memory": memory, "context": limit, "reserve": reserve}
    speaker = Pragnosia.from_pretrained(folder, **within)
    text = Joined(tuple(resolve(part) for part in data))
    one = None if memory is None else 1  # window at once: what a plan has scratch for
    found = evaluate(speaker.model, speaker.tokenizer, text, context=limit, batch_size=one, max_bytes=text_bytes)
    ids = speaker.encode("".join(text.documents())[: 8 * whole])[:whole]
    with torch.inference_mode():
        logits = speaker.model(torch.tensor([ids]), use_cache=False).logits[0]
    return found, logits.float().log_softmax(-1)
