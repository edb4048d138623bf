"""A spiking language model packed: the same brain, its weights in int8 (int8.py), in a directory of its own."""

from __future__ import annotations

from pathlib import Path

from transformers.utils import logging

from pragnosia.checkpoints.travel import carry
from pragnosia.checkpoints.writer import new_directory
from pragnosia.errors import CheckpointError
from pragnosia.spiking.int8 import filled
from pragnosia.spiking.neurogen import NeuroGenForCausalLM
from pragnosia.spiking.neurogen_configuration import NeuroGenConfig

FORMAT = "int8"


def packed(model: NeuroGenForCausalLM) -> NeuroGenForCausalLM:
    """A model with the weights rounded to int8. Raises CheckpointError for one that is packed already."""
    if model.config.is_int8:
        raise CheckpointError("the model's weights are int8 already; pack the model it was made from")
    made = NeuroGenForCausalLM(NeuroGenConfig(**model.config.to_dict() | {"weights": FORMAT}))
    filled(made, model)
    made.train(False)
    return made


def pack_directory(model: NeuroGenForCausalLM, source: Path, out: Path) -> NeuroGenForCausalLM:
    """Write it packed, with what lies beside `source`'s weights; whole or not at all. Raises CheckpointError."""
    made = packed(model)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with new_directory(out) as folder:
            made.save_pretrained(folder)
            carry(source, folder)
    finally:
        if shown:
            logging.enable_progress_bar()
    return made


def weight_bytes(folder: Path) -> int:
    """Of a directory's files of weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
