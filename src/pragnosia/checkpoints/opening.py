"""Another family's checkpoint, opened: its config.json and its tensors as numbers, whatever they are packed in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pragnosia.checkpoints.dequantised import EMBEDDINGS, SCHEMES, Dequantised
from pragnosia.checkpoints.families import read_family
from pragnosia.checkpoints.gguf_header import gguf_in
from pragnosia.checkpoints.gguf_source import GgufSource
from pragnosia.checkpoints.mxfp4 import Unpacked
from pragnosia.checkpoints.source import SafetensorsSource, TensorSource, read_json


def opened(path: Path, dtype: torch.dtype | None = None) -> tuple[dict[str, Any], TensorSource]:
    """Of a Hugging Face directory or a GGUF file; `dtype` is what quantised numbers become where they have none.

    Raises CheckpointError; reads no weights.
    """
    file = gguf_in(path)
    if file is not None:
        source = GgufSource(file, dtype)
        return source.config_json, source
    values = read_json(path / "config.json")
    read_family(values)  # an unsupported model should hear that before anything about its files
    tensors, settings = SafetensorsSource(path), values.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    if not settings or not isinstance(settings, Mapping) or method not in (*SCHEMES, "mxfp4"):
        return values, tensors  # what cannot be unpacked is told when the configuration is read
    if method == "mxfp4":
        return values, Unpacked(tensors)
    numbers = Dequantised(tensors, settings, dtype)
    key = "torch_dtype" if "torch_dtype" in values else "dtype"
    return values | {key: str(numbers.dtype(EMBEDDINGS)).removeprefix("torch.")}, numbers
