"""A one-pass learner from its directory (model/coincidence.py). torch is not loaded before its weights are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pragnosia.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from pragnosia.model.coincidence import CoincidenceForCausalLM

FAMILY = "pragnosia-coincidence"


def is_one_pass(model: Path | str) -> bool:
    """Whether a directory holds such a model; torch is not loaded."""
    try:
        values = json.loads((Path(model) / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("model_type") == FAMILY


def check(model: Path) -> None:
    """What can be said of a directory before torch is loaded. Raises CheckpointError."""
    from pragnosia.inference.directory import check_vocabulary, check_weights, require_tokenizer

    check_weights(model)
    require_tokenizer(model)
    check_vocabulary(model, json.loads((model / "config.json").read_text("utf-8")).get("tokenizer_digest"))


def check_learner(folder: Path | str) -> None:
    """Raise ConfigError for a folder that cannot be beside another model."""
    if not is_one_pass(folder):
        raise ConfigError(
            f"{folder} is no one-pass learner, which alone can be beside another model; make one: "
            "pragnosia train configs/coincidence.yaml --data my-text.txt --out runs/once"
        )
    check(Path(folder))


def load(model: Path) -> tuple[CoincidenceForCausalLM, PreTrainedTokenizerFast]:
    """Model and tokenizer. Raises CheckpointError in one line for what is broken."""
    check(model)
    from safetensors import SafetensorError
    from transformers.utils import logging

    from pragnosia.data import load_tokenizer
    from pragnosia.inference.directory import first_line
    from pragnosia.model.coincidence import CoincidenceForCausalLM

    logging.disable_progress_bar()
    try:
        loaded: Any = CoincidenceForCausalLM.from_pretrained(model, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"cannot load {model}: {first_line(error)}") from error
    finally:
        logging.enable_progress_bar()
    mind, info = loaded
    if missing := sorted(map(str, info["missing_keys"])):
        raise CheckpointError(f"the weights in {model} lack {missing[0]}; train it again")
    return mind.eval(), load_tokenizer(model)
