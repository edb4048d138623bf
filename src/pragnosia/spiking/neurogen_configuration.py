"""NeuroGenConfig: a spiking language model, completely; its brain is data, as configs/neurogen.yaml has it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedConfig

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.model.configuration import BORDER_KEYS
from pragnosia.spiking.configuration import BrainConfig, read_brain

KIND = "neurogen"
WEIGHTS = ("fp32", "int8")
_THEIRS = {"architectures", "dtype", "transformers_version", "problem_type", "output_hidden_states", "return_dict"}
_THEIRS |= {"id2label", "label2id", "is_encoder_decoder", "chunk_size_feed_forward"}


class NeuroGenConfig(PreTrainedConfig):
    """Raises ConfigError for what cannot be."""

    model_type = KIND

    vocab_size: int = 260
    brain: dict[str, Any] | None = None
    """Populations and projections (spiking/configuration.py); they run under the constant drive."""
    into: list[str] | None = None
    """Regions that a token is a current into; None: the first."""
    out: list[str] | None = None
    """Regions whose spikes are read; None: all."""
    current: float = 1.0
    """How much a token is to a membrane at the beginning of learning, in thresholds: the spread of its currents."""
    steps_per_token: int = 1
    trace_tokens: list[float] | None = None
    """Time constants with which spikes fade for the readout, in tokens; None: 1.5."""
    lines: int = 1
    """Delay lines: so many tokens, the last ones, are currents at once, each line with weights of its own."""
    line_fading: float = 1.0
    """How much weaker each later line begins; below 1 where lines stay as they were drawn."""
    rank: int | None = None
    """Width of the codes through which tokens enter and leave; None: every token has its weight to every neuron."""
    rank_in: int | None = None
    """Of the codes through which they enter; None: `rank`."""
    weights: str = "fp32"
    """What weights are kept in: fp32, or int8 of a model that learned (`pragnosia pack`)."""
    plastic: bool = True
    """Whether synapses are parameters that rules may change; else they stay as they were drawn."""
    dropout: float = 0.0
    """Share of what the readout hears that is silenced at random while the model learns."""
    slope_damp: float = 0.5
    """Height of what stands for a spike's derivative."""
    slope_width: float = 1.0
    """Its half width, in thresholds."""
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    tokenizer_digest: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        known = list(inspect.get_annotations(NeuroGenConfig))
        for key in kwargs:
            if key not in BORDER_KEYS | _THEIRS:
                raise ConfigError(unknown_name("configuration key", str(key), known))
        self._check_numbers()
        if isinstance(self.brain, Mapping) and isinstance(self.brain.get("populations"), list):
            named = [dict(one) for one in self.brain["populations"]]  # as `to_dict` writes them
            self.brain = {**self.brain, "populations": {one.pop("name"): one for one in named}}
        if self.brain is not None:  # transformers makes an empty configuration to compare others with
            populations = self.wired.populations
            self.into = _regions("into", [next(iter(populations))] if self.into is None else self.into, populations)
            self.out = _regions("out", list(populations) if self.out is None else self.out, populations)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    def _check_numbers(self) -> None:
        for name in ("vocab_size", "steps_per_token", "lines", "rank", "rank_in"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} is {value!r}; it must be 1 or more, and whole")
        for name in ("current", "line_fading", "slope_damp", "slope_width"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be greater than 0")
        self.trace_tokens = [1.5] if self.trace_tokens is None else list(self.trace_tokens)
        if not self.trace_tokens or not all(tau > 0 for tau in self.trace_tokens):
            raise ConfigError(f"trace_tokens is {self.trace_tokens}; name one time constant or more, greater than 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.weights not in WEIGHTS:
            raise ConfigError(unknown_name("weights", str(self.weights), WEIGHTS))
        if self.rank_in is None:
            self.rank_in = self.rank
        if self.tie_word_embeddings:
            raise ConfigError("tie_word_embeddings: a spiking model enters by currents and leaves by spikes; use rank")

    def to_dict(self) -> dict[str, Any]:
        """Populations as a list: transformers sorts keys, and the order of regions would be lost."""
        values: dict[str, Any] = super().to_dict()
        brain = values.get("brain")
        if isinstance(brain, Mapping) and isinstance(brain.get("populations"), Mapping):
            each = [{"name": name, **one} for name, one in brain["populations"].items()]
            values["brain"] = {**brain, "populations": each}
        return values

    @property
    def wired(self) -> BrainConfig:
        """The brain, checked. Raises ConfigError."""
        if not isinstance(self.brain, Mapping):
            raise ConfigError(
                f"brain is {self.brain!r}; expected populations and projections, as in configs/neurogen.yaml"
            )
        if self.brain.get("synapses") is not None:
            raise ConfigError("brain.synapses: a language model keeps its synapses itself; leave the key out")
        return _wired(json.dumps(self.brain))

    @property
    def is_int8(self) -> bool:
        """Whether weights have eight bits."""
        return self.weights == "int8"

    @property
    def exits(self) -> None:
        """There are none."""

    @property
    def num_hidden_layers(self) -> int:
        """Regions, under the name that transformers asks for."""
        return len((self.brain or {}).get("populations", ()))


@lru_cache(maxsize=8)
def _wired(brain: str) -> BrainConfig:
    return read_brain(json.loads(brain))


def _regions(where: str, names: Sequence[str], populations: Mapping[str, Any]) -> list[str]:
    for name in names:
        if name not in populations:
            raise ConfigError(unknown_name(f"population in {where}", str(name), populations))
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{where} is {list(names)}; name one region or more, each once")
    return list(names)
