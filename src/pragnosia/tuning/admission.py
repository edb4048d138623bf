"""Admission: which models an adapter may be folded into, said before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pragnosia.checkpoints.admission import FAMILIES, OURS, read_json, unsupported
from pragnosia.errors import CheckpointError
from pragnosia.quantisation.index import is_packed


def check_mergeable(folder: Path) -> None:
    """Raise CheckpointError for a model we cannot read, or whose weights are not plain numbers."""
    values = read_json(folder / "config.json")
    family = values.get("model_type")
    if family != OURS and family not in FAMILIES:
        raise unsupported(f"model family {family!r}")
    if is_packed(folder):
        raise CheckpointError(f"{folder} is packed; merge into the model it was packed from, then pack the result")
    quantised = values.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
        raise CheckpointError(
            f"the weights in {folder} are quantised ({method}), and a merged model could not be so without loss; "
            "turn it into plain numbers first, and merge into that: pragnosia import SOURCE OUT"
        )
