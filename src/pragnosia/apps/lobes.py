"""`lobes`: what each lobe of a model is for, by silencing one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, answering

if TYPE_CHECKING:
    from pragnosia.measure.lobes import Ablation
    from pragnosia.model.cortex import Cortex

_SAID = 32
"""Tokens said to a prompt."""


@answering
def lobes(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model directory with lobes.")],
    data: Annotated[
        list[str],
        typer.Option("--data", help="domain=TEXT, repeatable; or a folder with a file or folder for each domain."),
    ],
    tokens: Annotated[int, typer.Option(min=64, help="Of each domain, read so many.")] = 4096,
    plot: Annotated[Path | None, typer.Option(help="Draw the matrix, as .png, .svg, .pdf, .jpg or .webp.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Go on with it greedily: as it is, and with each lobe steered.")
    ] = None,
    steer: Annotated[float, typer.Option(help="With --prompt: how far up a lobe is steered; below 0, down.")] = 4.0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Answer:
    """Say how much worse a model predicts each domain when one of its lobes is silent.

    Rows are lobes, columns domains; what a domain needs stands where its column is large. The text should be one the
    model has not learned from.
    """
    from pragnosia.checkpoints.admission import check_wide_awake
    from pragnosia.data.domains import read_domains
    from pragnosia.errors import CheckpointError
    from pragnosia.inference.directory import check_speaker
    from pragnosia.quantisation.index import is_packed

    domains = read_domains(data)
    if plot is not None:
        _check_plot(plot)
    check_speaker(model)
    check_wide_awake(model)
    if is_packed(model):
        raise CheckpointError(f"{model} is packed; ask for the lobes of the model it was made from")
    import torch

    from pragnosia.inference.loading import load_model, load_tokenizer
    from pragnosia.measure.lobes import ablate, draw, lobes_of

    cortex = load_model(model, torch.float32)
    lobes_of(cortex)
    tokenizer = load_tokenizer(model, int(cortex.config.vocab_size), cortex.config.tokenizer_digest)
    found = ablate(cortex, tokenizer, domains, tokens=tokens)
    values: dict[str, Any] = {"model": str(model), **found.to_dict()}
    lines = _table(found)
    if prompt is not None:
        values["steered"] = {"amount": steer, "said": (said := _said(cortex, tokenizer, prompt, found.lobes, steer))}
        lines += ["", *(f"{who}: {text!r}" for who, text in said.items())]
    if plot is not None:
        draw(found, plot, f"{model.resolve().name}: what is lost when a lobe is silent")
        values["plot"] = str(plot)
        lines += ["", f"drawn: {plot}"]
    return Answer(values, lines)


def _check_plot(path: Path) -> None:
    """Raise ConfigError for a picture that cannot be written."""
    from pragnosia.errors import ConfigError
    from pragnosia.measure.pictures import FORMATS

    if path.suffix[1:].lower() not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise ConfigError(f"--plot {path}: a picture's name says what it is written as; end it in one of {endings}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot {path}: name a file in a folder that is there")


def _said(cortex: Cortex, tokenizer: Any, prompt: str, names: tuple[str, ...], amount: float) -> dict[str, str]:
    """What the model goes on with, unsteered and with each lobe steered."""
    from contextlib import nullcontext

    said = {}
    for name in (None, *names):
        with nullcontext() if name is None else cortex.steer(name, amount):
            said[name or "unsteered"] = _spoken(cortex, tokenizer, prompt)
    return said


def _spoken(cortex: Any, tokenizer: Any, prompt: str) -> str:
    import torch

    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    length = ids.shape[1]
    room = int(cortex.config.max_position_embeddings) - length
    with torch.inference_mode():
        for _ in range(min(_SAID, room)):
            ids = torch.cat([ids, cortex(ids, use_cache=False, logits_to_keep=1).logits[:, -1:].argmax(-1)], dim=1)
    return str(tokenizer.decode(ids[0, length:].tolist()))


def _table(found: Ablation) -> list[str]:
    """The matrix in nats per token, with the lobes' shares of the work in brackets."""
    head = ["silent", *found.domains]
    body = [
        [lobe, *(f"{rise:+.3f} ({share:.0%})" for rise, share in zip(rises, shares, strict=True))]
        for lobe, rises, shares in zip(found.lobes, found.rise, found.share, strict=True)
    ]
    whole = ["nobody", *(f"{loss:.3f}" for loss in found.loss)]
    rows = [head, whole, *body]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    told = "loss in nats per token, its rise where a lobe is silent, and in brackets the lobe's share of the wakings"
    if found.diagonal is None:
        return [*lines, "", f"{told}; no domain is named as a lobe"]
    contrast = (
        "" if found.contrast is None else f"; contrast {found.contrast:.1f} (of the sizes, whichever way they go)"
    )
    return [
        *(*lines, "", told),
        f"a domain's own lobe silent {found.diagonal:+.3f}, another's {found.off_diagonal or 0.0:+.3f}{contrast}",
    ]
