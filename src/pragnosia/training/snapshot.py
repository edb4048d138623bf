"""Snapshot: everything a run is at one step, out to a folder and back, bit for bit.

What must be equal for the next loss to be equal: weights and buffers, moments, averages, random generators, the
position in the data. See checkpoint.py for the folder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

from pragnosia.data import Batches, vocabulary_digest
from pragnosia.errors import CheckpointError
from pragnosia.training.average import Average
from pragnosia.training.checkpoint import random_state, restore_random
from pragnosia.training.optimisers import Optimisers
from pragnosia.training.processes import here
from pragnosia.training.upbringing import Upbringing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MOMENTS, AVERAGE, RANDOM, STATE = "moments.safetensors", "average.safetensors", "random.safetensors", "state.json"


@dataclass
class Course:
    """How far a run has come."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Spent learning: not validating, saving or packing text."""


@dataclass(frozen=True)
class Snapshot:
    """The parts of a run that change while it runs."""

    course: Course
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    optimisers: Optimisers
    average: Average | None
    batches: Batches
    upbringing: Upbringing | None = None

    def write(self, folder: Path) -> None:
        """Fill a folder."""
        save_model(self.model, self.tokenizer, folder)
        save_file(_whole(self.optimisers.state()), folder / MOMENTS)
        if self.average is not None:
            save_file(_whole(self.average.means), folder / AVERAGE)
        tensors, numbers = random_state()
        save_file(tensors, folder / RANDOM)
        state = {"course": asdict(self.course), "batches": self.batches.state_dict(), "random": numbers}
        if self.upbringing is not None and self.upbringing.active:
            state["upbringing"] = self.upbringing.state()
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")

    def read(self, folder: Path) -> None:
        """Take up what was written. Raises CheckpointError where it is not of this model."""
        try:
            load_weights(self.model, folder)
            self.optimisers.load_state(load_file(folder / MOMENTS))
            if self.average is not None:
                self.average.load_state(load_file(folder / AVERAGE))
            state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"cannot read the checkpoint {folder}: {error}; delete it to use the one before"
            ) from error
        for key, value in state["course"].items():
            setattr(self.course, key, value)
        if self.upbringing is not None and self.upbringing.active:
            self.upbringing.load_state(state["upbringing"], self.course.step)
        self.batches.load_state_dict(state["batches"])
        restore_random(load_file(folder / RANDOM), state["random"])


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A model directory, for `from_pretrained`; silently, since our own bar may be on the screen."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer.save_pretrained(str(folder))
        model.config.tokenizer_digest = vocabulary_digest(folder)
        if here().rank == 0:
            model.save_pretrained(folder)
        else:  # of several processes transformers lets the first alone write
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(folder)
            tied = set(model.all_tied_weights_keys or ())
            weights = {name: value for name, value in model.state_dict().items() if name not in tied}
            save_file(_whole(weights), folder / "model.safetensors", metadata={"format": "pt"})
    finally:
        if shown:
            logging.enable_progress_bar()


@torch.no_grad()
def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Copy a saved model's weights and buffers into `model`."""
    held: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        held |= load_file(file)
    missing, unexpected = model.load_state_dict(held, strict=False)
    tied = set(model.all_tied_weights_keys or ())
    if unexpected or set(missing) - tied:
        odd = min({*unexpected, *missing} - tied)
        raise ValueError(f"its weights are of another model ({odd})")


def _whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors wants them: contiguous, each with storage of its own."""
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
