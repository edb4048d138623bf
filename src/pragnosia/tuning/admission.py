"""Admission: whose weights may be changed, said before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pragnosia.checkpoints.admission import FAMILIES, OURS, read_json, unsupported
from pragnosia.checkpoints.gguf_header import gguf_in
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


def check_directory_of_tensors(model: Path, verb: str) -> None:
    """Raise CheckpointError for a GGUF file: an adapter needs a directory whose config.json it can name."""
    if gguf_in(model) is not None:
        raise CheckpointError(
            f"{model} is a GGUF file, and to {verb} takes a directory; make one (pragnosia import {model} OUT) and "
            f"{verb} OUT"
        )


def check_tunable(folder: Path) -> None:
    """Raise CheckpointError for a model whose own weights cannot learn: they are rounded."""
    if is_packed(folder):
        raise CheckpointError(
            f"{folder} is packed, and rounded weights cannot learn; tune the model it was packed from, "
            "or adapters on this one: --method lora"
        )
    if read_json(folder / "config.json").get("quantization_config"):
        raise CheckpointError(
            f"the weights in {folder} are quantised, and rounded weights cannot learn; turn it into plain numbers "
            "first (pragnosia import SOURCE OUT), or tune adapters on this one: --method lora"
        )
