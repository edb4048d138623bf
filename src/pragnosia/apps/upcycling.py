"""`upcycle`: a dense model becomes a mixture, and what that changes is measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.units import format_count, parse_bytes

if TYPE_CHECKING:
    from pragnosia.plasticity.upcycling import Upcycling

_PROBE = 64
"""Tokens that both models are asked about."""


@answering
def upcycle(
    source: Annotated[
        Path,
        typer.Argument(metavar="DENSE_MODEL", help="A dense model: ours, a supported family's, or a GGUF file."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory to make.")],
    experts: Annotated[int, typer.Option(help="Experts in place of every dense feed-forward.")] = 8,
    awake: Annotated[int, typer.Option(help="Of them, how many wake for a token.")] = 2,
    split: Annotated[
        int, typer.Option(help="Slices that a copy is cut into, each an expert; as many as --experts: no copies.")
    ] = 1,
    drop: Annotated[float, typer.Option(help="The share of each copy's neurons drawn anew, as 0.5; in [0, 1).")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the routers, and of what is drawn anew.")] = 0,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Texts to measure both models on; repeatable.")
    ] = None,
    max_bytes: Annotated[str, typer.Option(help="Read so much text.")] = "256KiB",
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Turn a dense model into a mixture of experts that says the same, to be trained on.

    Every expert is a copy of the feed-forward it stands for, or a slice of one (--split). The mixture says what the
    dense model said as long as nothing is drawn anew and whole copies wake (--awake a multiple of --split).
    """
    from pragnosia.checkpoints.admission import check_vacant, check_wide_awake
    from pragnosia.data.specs import resolve
    from pragnosia.errors import CheckpointError
    from pragnosia.inference.directory import check_speaker, check_weights, is_foreign
    from pragnosia.quantisation.index import is_packed

    limit = parse_bytes(max_bytes)
    for text in data or []:
        resolve(text)
    if data:
        check_speaker(source)
    elif not is_foreign(source):
        check_weights(source)
    check_wide_awake(source)
    if is_packed(source):
        raise CheckpointError(f"{source} is packed; upcycle the model it was made from")
    check_vacant(out)
    from pragnosia.plasticity.upcycling import Upcycling

    plan = Upcycling(experts=experts, awake=awake, split=split, drop=drop, seed=seed)
    values = _made(source, out, plan)
    if data:
        for when, folder in (("before", source), ("after", out)):
            values[f"bits_per_byte_{when}"] = _bits_per_byte(folder, data, limit)
    return Answer(values, aligned(_rows(values, plan)))


def _made(source: Path, out: Path, plan: Upcycling) -> dict[str, Any]:
    """The mixture written, and set beside its parent."""
    from pragnosia.checkpoints.blueprint import blueprint
    from pragnosia.measure.accounting import account
    from pragnosia.plasticity.upcycling import upcycle_directory

    dense = blueprint(source).config
    mixture = upcycle_directory(source, out, plan)
    before, after = account(dense), account(mixture)
    return {
        "source": str(source),
        "out": str(out),
        "experts": plan.experts,
        "awake": plan.awake,
        "split": plan.split,
        "drop": plan.drop,
        "total_parameters_before": before.total_parameters,
        "total_parameters": after.total_parameters,
        "active_parameters_before": before.active_parameters,
        "active_parameters": after.active_parameters,
        "keeps_function": plan.keeps_function,
        "largest_logit_change": _largest_change(source, out),
    }


def _largest_change(source: Path, out: Path) -> float:
    """Of any logit, over tokens drawn by chance; both computed in single precision."""
    import torch

    from pragnosia.inference.loading import load_model

    said = []
    for folder in (source, out):
        model = load_model(folder, torch.float32)
        count = min(_PROBE, int(model.config.max_position_embeddings))
        tokens = torch.randint(int(model.config.vocab_size), (1, count), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            said.append(model(tokens, use_cache=False).logits)
    return float((said[1] - said[0]).abs().max())


def _bits_per_byte(folder: Path, data: list[str], limit: int) -> float:
    import torch

    from pragnosia.data import Joined, resolve
    from pragnosia.inference.loading import load_model, load_tokenizer
    from pragnosia.measure.evaluation import evaluate

    model: Any = load_model(folder, torch.float32)
    tokenizer = load_tokenizer(folder, int(model.config.vocab_size), model.config.tokenizer_digest)
    return evaluate(model, tokenizer, Joined(tuple(map(resolve, data))), max_bytes=limit).bits_per_byte


def _rows(values: dict[str, Any], plan: Upcycling) -> list[tuple[str, str]]:
    what = "whole copies" if plan.split == 1 else f"slices of {plan.copies} {'copies' if plan.copies > 1 else 'copy'}"
    drawn = f", {plan.drop:.0%} of their neurons drawn anew" if plan.drop else ""
    rows = [
        ("upcycled", f"{values['source']} to {values['out']}"),
        ("experts", f"{plan.experts} in place of each feed-forward, {plan.awake} awake: {what}{drawn}"),
        *(
            (f"{kind} parameters", f"{format_count(values[key])}, before {format_count(values[f'{key}_before'])}")
            for kind, key in (("total", "total_parameters"), ("active", "active_parameters"))
        ),
        ("largest logit change", f"{values['largest_logit_change']:.2g}"),
    ]
    if "bits_per_byte_after" in values:
        after, before = values["bits_per_byte_after"], values["bits_per_byte_before"]
        rows.append(("bits per byte", f"{after:.4f}, before {before:.4f}"))
    if plan.keeps_function:
        rows.append(("next", f"train it on: start: {values['out']} in a configuration of pragnosia train"))
    else:
        rows.append(("next", f"it has to be trained on: start: {values['out']} in a configuration of pragnosia train"))
    return rows
