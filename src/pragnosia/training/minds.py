"""Minds: which kind of model a configuration asks for, and what of a spiking one assembly has to know.

model: {preset: nano, …}                         a cortex
model: {kind: neurogen, brain: FILE or {…}, …}   a spiking model (spiking/neurogen.py)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub.errors import StrictDataclassError

from pragnosia.checkpoints.admission import most_padded
from pragnosia.data import check_vocabulary, vocabulary_size
from pragnosia.errors import ConfigError, unknown_name
from pragnosia.measure.memory import INTERPRETER_BYTES, Memory
from pragnosia.spiking.configuration import BrainConfig
from pragnosia.spiking.neurogen_configuration import KIND, NeuroGenConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

KINDS = (KIND, "coincidence")
_FILM = 6
"""Numbers kept of a neuron and step: spike, margin, slope, worth and what makes them."""


def is_spiking(section: Mapping[str, Any]) -> bool:
    """Whether a section `model` asks for a spiking model."""
    return section.get("kind") == KIND


def check_spiking(section: Mapping[str, Any]) -> None:
    """Raise ConfigError for a kind or key there is not."""
    if section["kind"] not in KINDS:
        raise ConfigError(unknown_name("model.kind", str(section["kind"]), KINDS))
    known = [*inspect.get_annotations(NeuroGenConfig), "kind"]
    for key in section:
        if key not in known:
            raise ConfigError(unknown_name("key in model", str(key), known))


def with_brain(values: dict[str, Any], source: Any) -> dict[str, Any]:
    """A configuration in which a brain that stands in a file of its own is data. Raises ConfigError.

    The file is looked for beside the configuration, then where we are.
    """
    section = values.get("model")
    if not isinstance(section, Mapping) or not is_spiking(section) or not isinstance(section.get("brain"), str):
        return values
    name = Path(section["brain"])
    places = [Path(source).parent / name, name] if isinstance(source, Path | str) else [name]
    file = next((place for place in places if place.is_file()), name)
    try:
        brain = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"model.brain: cannot read {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"model.brain: {file} is not YAML: {' '.join(str(error).split())}") from error
    return {**values, "model": {**section, "brain": brain}}


def spiking_config(
    section: Mapping[str, Any], vocab_size: int | None, tokenizer: PreTrainedTokenizerFast | None
) -> NeuroGenConfig:
    """The shape, and what the tokenizer says; until it is there, `vocab_size`. Raises ConfigError."""
    values = {key: value for key, value in section.items() if key != "kind"}
    if tokenizer is not None:
        if "vocab_size" in values:
            check_vocabulary(tokenizer, values["vocab_size"])
            if values["vocab_size"] > most_padded(len(tokenizer)):
                raise ConfigError(
                    f"model.vocab_size is {values['vocab_size']}, and the tokenizer has {len(tokenizer)} tokens; "
                    "leave model.vocab_size out"
                )
        values.setdefault("vocab_size", vocabulary_size(tokenizer))
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            values.setdefault(key, getattr(tokenizer, key))
    elif vocab_size is not None:
        values.setdefault("vocab_size", vocab_size)
    if values.get("brain") is None:
        raise ConfigError("model.brain is missing; name a file such as configs/neurogen.yaml, or write populations")
    try:
        return NeuroGenConfig(**values)
    except (StrictDataclassError, TypeError) as error:
        raise ConfigError(f"model: {' '.join(str(error).split())}") from error


def spiking_parameters(config: NeuroGenConfig) -> int:
    """Of all parts; synapses that stay as they were drawn are counted, too, where each has a weight."""
    brain: BrainConfig = config.wired
    sizes = {name: one.size for name, one in brain.populations.items()}
    into, out = (sum(sizes[name] for name in names or ()) for names in (config.into, config.out))
    ends = [(config.rank_in, config.lines * into), (config.rank, len(config.trace_tokens or ()) * out)]
    around = sum(config.vocab_size * (rank or end) + (rank or 0) * end for rank, end in ends) + config.vocab_size
    return around + sum(
        sizes[one.target] * (sizes[one.source] if one.fan_in == "all" else one.fan_in)
        if config.plastic or one.spread or one.mixed or one.plasticity or one.fan_in == "all"
        else 1
        for one in brain.projections
    )


def spiking_memory(config: NeuroGenConfig, *, tokens: int, moments: float) -> Memory:
    """What training takes: the film of every step is kept where slopes are wanted."""
    weights = 4 * spiking_parameters(config)
    neurons = sum(one.size for one in config.wired.populations.values())
    traces = 2 * len(config.trace_tokens or ())
    kept = tokens * neurons * 4 * (config.steps_per_token * _FILM + 1 + traces) if config.plastic else 0
    return Memory(
        parts={
            "weights": weights,
            "gradients": weights,
            "optimiser": round(moments * weights),
            "activations": kept + 12 * tokens * config.vocab_size,
            "interpreter": INTERPRETER_BYTES,
        }
    )
