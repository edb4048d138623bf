"""A run that begins with a model that is there: `start: DIR` in its configuration, in the place of `model`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pragnosia.checkpoints.admission import check_wide_awake
from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.inference.directory import check_directory, require_tokenizer
from pragnosia.quantisation.index import is_packed
from pragnosia.training.snapshot import load_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pragnosia.model.configuration import PragnosiaConfig


def start_shape(start: str, sequence_length: int) -> PragnosiaConfig:
    """The shape of the model to begin with. Raises CheckpointError or ConfigError for one that cannot be trained on."""
    from pragnosia.inference.loading import load_config

    folder = Path(start)
    check_directory(folder)
    check_wide_awake(folder)
    if is_packed(folder):
        raise CheckpointError(f"{folder} is packed; start with the model it was made from")
    require_tokenizer(folder)
    shape = load_config(folder)
    if shape.max_position_embeddings < sequence_length:
        raise ConfigError(
            f"batch.sequence_length is {sequence_length}, the model at {folder} holds "
            f"{shape.max_position_embeddings} tokens; shorten it"
        )
    return shape


def begin_with(model: PreTrainedModel, start: str) -> None:
    """Give a model the weights of the one to begin with. Raises CheckpointError."""
    try:
        load_weights(model, Path(start))
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"cannot start with {start}: {error}; copy it again") from error
