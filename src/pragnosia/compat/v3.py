"""Brain-Inspired Language Model v3: the names of its library, and what they are here.

    create_brain_inspired_model      the shape of the preset `brain-lm`, at another vocabulary, width and depth
    BrainInspiredTrainingSystem      training.train and a speaker
    get_memory_stats                 model/memory_state.py, and the episodic store
    get_consciousness_state          model/workspace_state.py

The names are the ancestor's; the numbers are others: there shares of memory and "consciousness" were means of
activations that did not depend on what was read, here each is a count or a probability that its module defines. What a
model learned from text is trained by `train`; `teach` keeps a text in one shot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pragnosia.errors import CheckpointError, ConfigError
from pragnosia.inference.speaker import Pragnosia
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex
from pragnosia.model.memory_state import memory_state
from pragnosia.model.modeling import PragnosiaForCausalLM
from pragnosia.model.presets import PRESETS, remembering
from pragnosia.model.workspace_state import workspace_state
from pragnosia.training.progress import Reporter
from pragnosia.training.trainer import TrainReport, train

__all__ = [
    "BrainInspiredTrainingSystem",
    "create_brain_inspired_model",
    "get_consciousness_state",
    "get_memory_stats",
]

_PRESET = PRESETS["brain-lm"]
Mind = Pragnosia | Cortex
Text = str | Sequence[int]


def create_brain_inspired_model(
    vocab_size: int = _PRESET["vocab_size"],
    dim: int = _PRESET["hidden_size"],
    num_layers: int = _PRESET["num_hidden_layers"],
    *,
    spiking: bool = False,
    **changes: Any,
) -> PragnosiaForCausalLM:
    """An untrained model, with `spiking` of leaky integrate-and-fire neurons; `changes` are fields of PragnosiaConfig.

    Raises ConfigError.
    """
    shape = _shape(vocab_size, dim, num_layers, changes, spiking=spiking)
    return PragnosiaForCausalLM(PragnosiaConfig(**shape))


def get_memory_stats(mind: Mind, text: Text | None = None) -> dict[str, Any]:
    """What a model remembers: slots and rows, their use by `text` where one is given, and what it was taught.

    `short_term_usage` is the share of working memory's slots that something stands in behind the text,
    `long_term_usage` the share of the table's rows that the text recalled; both None without a text.
    """
    model, ids = _read(mind, text)
    config: Any = model.config
    working, table = config.working_memory, config.hippocampus
    state = None if ids is None else memory_state(model, ids)
    slots = 0 if working is None else working.num_slots * len(working.layers)
    rows = 0 if table is None else table.num_rows
    return {
        "short_term_slots": slots,
        "short_term_usage": None if state is None or not slots else state.slots_filled / slots,
        "long_term_rows": rows,
        "long_term_usage": None if state is None or not rows else state.rows_recalled / rows,
        **_taught(mind),
    }


def get_consciousness_state(mind: Mind, text: Text) -> dict[str, Any]:
    """What stands in the workspace behind a text: awareness, attention, memory, intention, as workspace_state says.

    Raises ConfigError for a model without a workspace.
    """
    if isinstance(mind, Pragnosia) and isinstance(text, str):
        return mind.workspace_state(text).to_dict()
    model, ids = _read(mind, text)
    assert ids is not None
    return workspace_state(model, ids).to_dict()


class BrainInspiredTrainingSystem:
    """A model of this shape, trained on texts into a folder, that then speaks."""

    def __init__(
        self,
        vocab_size: int = _PRESET["vocab_size"],
        dim: int = _PRESET["hidden_size"],
        num_layers: int = _PRESET["num_hidden_layers"],
        *,
        out: str | Path = "runs/brain-lm",
        spiking: bool = False,
        **changes: Any,
    ) -> None:
        self.out = Path(out)
        self._vocab_size = vocab_size
        self._shape = _shape(vocab_size, dim, num_layers, changes, spiking=spiking)
        PragnosiaConfig(**self._shape)  # what cannot be is told now
        self._speaker: Pragnosia | None = None

    @property
    def speaker(self) -> Pragnosia:
        """The trained model. Raises CheckpointError before it was trained."""
        if self._speaker is None:
            if not (self.out / "config.json").is_file():
                raise CheckpointError(f"{self.out} holds no trained model yet; call train(texts, steps=…) first")
            self._speaker = Pragnosia.from_pretrained(self.out)
        return self._speaker

    def train(
        self,
        data: Sequence[str],
        steps: int = 500,
        *,
        resume: bool = False,
        reporter: Reporter | None = None,
        **settings: Any,
    ) -> TrainReport:
        """Learn from texts, named as for `pragnosia train --data`; `settings` are sections of a training config.

        Raises UserErrors.
        """
        if isinstance(data, str) or not all(isinstance(one, str) for one in data):
            raise ConfigError("train takes a list of texts by name (files, folders, recipes), not loaders of batches")
        shape = {key: value for key, value in self._shape.items() if key != "vocab_size"}
        config: Mapping[str, Any] = {
            "tokenizer": {"vocab_size": self._vocab_size},
            "steps": steps,
            **settings,
            "model": shape,
        }
        self._speaker = None
        return train(config, data=data, out=self.out, resume=resume, reporter=reporter)

    def generate_text(self, prompt: str, max_length: int = 100, temperature: float = 0.7, **sampling: Any) -> str:
        """The continuation of a prompt, at most `max_length` tokens."""
        return self.speaker.generate(prompt, max_new_tokens=max_length, temperature=temperature, **sampling)

    def get_memory_stats(self, text: Text | None = None) -> dict[str, Any]:
        """As the function of that name."""
        return get_memory_stats(self.speaker, text)

    def get_consciousness_state(self, text: Text) -> dict[str, Any]:
        """As the function of that name."""
        return get_consciousness_state(self.speaker, text)


def _shape(vocab_size: int, dim: int, num_layers: int, changes: Mapping[str, Any], *, spiking: bool) -> dict[str, Any]:
    if min(vocab_size, dim, num_layers) < 1:
        raise ConfigError(
            f"vocab_size, dim and num_layers are {vocab_size}, {dim}, {num_layers}; all must be 1 or more"
        )
    context = _PRESET["max_position_embeddings"]
    shape = remembering(vocab=vocab_size, width=dim, layers=num_layers, context=context, spiking=spiking)
    return shape | dict(changes)


def _read(mind: Mind, text: Text | None) -> tuple[Cortex, Sequence[int] | None]:
    """The model, and the text's ids. Raises ConfigError for words before a model without a tokenizer."""
    model = mind.model if isinstance(mind, Pragnosia) else mind
    if not isinstance(text, str):
        return model, text
    if not isinstance(mind, Pragnosia):
        raise ConfigError("a model alone reads token ids; give ids, or a Pragnosia with its tokenizer")
    return model, mind.encode(text)


def _taught(mind: Mind) -> dict[str, int]:
    """Lessons and entries of the store, none where there is none."""
    if isinstance(mind, Pragnosia) and (folder := mind.remembering.folder) is not None and folder.is_dir():
        from pragnosia.store.episodes import EpisodicStore

        with EpisodicStore.peek(folder, readonly=True) as held:
            values = held.stats()
        return {"episodes": values["episodes"], "entries": values["entries"]}
    return {"episodes": 0, "entries": 0}
