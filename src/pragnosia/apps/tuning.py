"""`merge`: an adapter is folded into the model it was trained on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pragnosia.apps.answer import Answer, AsJson, Debug, aligned, answering
from pragnosia.units import format_bytes, format_count


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
