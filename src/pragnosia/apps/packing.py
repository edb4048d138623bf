"""`pack`: a model becomes smaller on disk and in memory, each unit one record that is read alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.apps.budgeting import bar
from pragnosia.units import format_bytes


@answering
def pack(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A model directory, ours or a supported family's.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory to make.")],
    format: Annotated[str, typer.Option(help="bf16, int8, int4, int3, int2 or nf4.")] = "int4",  # noqa: A002
    data: Annotated[
        list[str] | None, typer.Option("--data", help="A text on which to measure what packing lost; repeatable.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Pack a model: units as records, matrices in few bits. The same command goes on where it was stopped.

    With --data the packed model is compared with the source: bits per byte of both, and the mean KL divergence.
    """
    from pragnosia.checkpoints.admission import check_vacant
    from pragnosia.errors import CheckpointError
    from pragnosia.inference.directory import check_weights, is_foreign
    from pragnosia.quantisation.index import is_packed

    is_foreign(source)
    if is_packed(source):
        raise CheckpointError(f"{source} is packed already; pack the model it was made from")
    check_weights(source)
    check_vacant(out)
    from pragnosia.checkpoints.blueprint import blueprint
    from pragnosia.quantisation.packing import pack_model

    with bar("packing", quiet=as_json) as progress:
        report = pack_model(blueprint(source), out, format, progress=progress)
    values: dict[str, Any] = {"source": str(source), **asdict(report)}
    rows = [
        ("packed", f"{source} to {out} as {format}{', resumed' if report.resumed else ''}"),
        ("size", f"{format_bytes(report.num_bytes)} of {format_bytes(report.source_bytes)}"),
        ("bits per weight", f"{report.bits_per_weight:.2f}"),
    ]
    if data:
        values |= _loss(source, out, data)
        rows += [
            (
                "bits per byte",
                f"{values['packed_bits_per_byte']:.4f}, of the source {values['source_bits_per_byte']:.4f}",
            ),
            ("perplexity", f"{values['packed_perplexity']:.3f}, of the source {values['source_perplexity']:.3f}"),
            ("KL divergence", f"{values['kl_divergence']:.4g} nats per token, over {values['kl_tokens']} tokens"),
        ]
    return Answer(values, aligned(rows))


def _loss(source: Path, packed: Path, data: list[str]) -> dict[str, Any]:
    """What packing lost, on a text: both models from disk, a layer's units at a time."""
    import torch

    from pragnosia.data import Joined, resolve
    from pragnosia.inference.speaker import Pragnosia
    from pragnosia.measure.evaluation import evaluate

    values: dict[str, Any] = {}
    logarithms = []
    for name, folder in (("source", source), ("packed", packed)):
        speaker = Pragnosia.from_pretrained(folder)
        text = Joined(tuple(resolve(part) for part in data))
        limit = min(speaker.model.config.max_position_embeddings, 512)
        found = evaluate(speaker.model, speaker.tokenizer, text, context=limit, max_bytes=64 << 10)
        values[f"{name}_bits_per_byte"], values[f"{name}_perplexity"] = found.bits_per_byte, found.perplexity
        ids = speaker.encode("".join(text.documents())[: 8 * limit])[:limit]
        with torch.inference_mode():
            logits = speaker.model(torch.tensor([ids]), use_cache=False).logits[0]
        logarithms.append(logits.float().log_softmax(-1))
    truth, ours = logarithms
    values["kl_divergence"] = float((truth.exp() * (truth - ours)).sum(-1).mean())
    values["kl_tokens"] = len(truth)
    return values
