"""TrainConfig: what a run is, read strictly from YAML.

An unknown key is an error that names the nearest known one. A section whose organ stands in another file (optimiser,
schedule, checkpoint, …) is defined there.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from pragnosia.errors import ConfigError, unknown_name
from pragnosia.model.configuration import refuse_unknown
from pragnosia.model.presets import PRESETS
from pragnosia.plasticity.synapses import RewiringConfig
from pragnosia.training.average import AverageConfig
from pragnosia.training.checkpoint import CheckpointConfig
from pragnosia.training.curriculum import CurriculumConfig
from pragnosia.training.lobes import LobesConfig
from pragnosia.training.minds import check_spiking, with_brain
from pragnosia.training.optimisers import OptimiserConfig
from pragnosia.training.schedules import ScheduleConfig, check_lengths
from pragnosia.training.settings import read_settings
from pragnosia.training.stages import StageConfig, check_stages
from pragnosia.training.triggers import PlasticityConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Where the tokenizer comes from: a folder, or trained on the run's own data."""

    path: str | None = None
    kind: Literal["bpe", "characters"] = "bpe"
    """What tokens are: byte pairs that were merged, or single characters; of rare ones bytes."""
    vocab_size: int = 4096
    max_bytes: int = 100_000_000
    """At most so much text is read to train it."""
    temperature: float | None = None
    """How alike the sources' shares of that text are: 1 is in proportion to their sizes; None is equal, size unseen."""

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature >= 1:
            raise ConfigError(f"tokenizer.temperature is {self.temperature}; it must be 1 (in proportion) or more")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read: files, directories or recipes; a mapping gives each a weight."""

    sources: list[str] | dict[str, float] = field(default_factory=lambda: ["default"])
    validation_fraction: float = 0.02
    """Share of the text that is never trained on."""
    cache: str | None = None
    """Folder for packed text, for runs to share; None is `data` in the run's own."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("data.sources is empty; name a file, a directory or a recipe, or 'default'")
        if not 0 <= self.validation_fraction <= 0.5:
            raise ConfigError(f"data.validation_fraction is {self.validation_fraction}; it must be between 0 and 0.5")


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Tokens of one step: batch_size * sequence_length * accumulation."""

    batch_size: int = 16
    sequence_length: int = 256
    accumulation: int = 1
    """Batches whose gradients are summed before a step."""

    def __post_init__(self) -> None:
        for key in ("batch_size", "accumulation"):
            if getattr(self, key) < 1:
                raise ConfigError(f"batch.{key} is {getattr(self, key)}; it must be at least 1")
        if self.sequence_length < 2:
            raise ConfigError(f"batch.sequence_length is {self.sequence_length}; it must be at least 2")

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch_size * self.sequence_length * self.accumulation


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What is written down, and how often [steps]."""

    every: int = 10
    validate_every: int = 200
    validation_tokens: int = 65_536
    """At most so many held-out tokens are read each time."""
    tensorboard: bool = True
    curves: bool = True

    def __post_init__(self) -> None:
        for key in ("every", "validate_every", "validation_tokens"):
            if getattr(self, key) < 1:
                raise ConfigError(f"logging.{key} is {getattr(self, key)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run, completely."""

    model: dict[str, Any] = field(default_factory=dict)
    """`preset: name` and any field of PragnosiaConfig; or `kind: neurogen` and any field of NeuroGenConfig."""
    start: str | None = None
    """Instead of `model`: a model directory whose shape, weights and tokenizer the run begins with."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    curriculum: CurriculumConfig | None = None
    """Which text comes first; None: all of it, shuffled, from the first step on."""
    stages: list[StageConfig] | Literal["default"] | None = None
    """Parts of the run in which the model grows up (stages.py); None: it is adult from the first step on."""
    lobes: LobesConfig | None = None
    """How the lobes of a sparse model come to differ, on data labelled by domain (lobes.py); None: they need not."""
    plasticity: PlasticityConfig | None = None
    """When the model's structure changes by itself (triggers.py); None: it does not."""
    rewiring: RewiringConfig | None = None
    """How synapses of a spiking model die and grow while it learns; None: they stay where they were drawn."""
    steps: int | None = None
    tokens: float | None = None
    """Instead of steps: how many tokens to train on, rounded down to whole steps."""
    rule: str = "backprop"
    learning: dict[str, Any] = field(default_factory=dict)
    """What the rule is told of its own, as `inner_steps` and `inner_rate` of reptile, fomaml and maml."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes under autocast; the weights and their moments stay fp32."""
    gradient_checkpointing: bool = False
    compile: bool = False
    device: str = "auto"
    seed: int = 0
    ema: AverageConfig | None = None
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        _check_model(self.model)
        if self.start is not None and (self.model or self.stages is not None):
            other = "model" if self.model else "stages"
            raise ConfigError(f"start and {other} both say what the run begins with; leave one of them out")
        if (self.steps is None) == (self.tokens is None):
            raise ConfigError("give exactly one of steps and tokens: how long to train")
        if self.num_steps < 1:
            raise ConfigError(f"steps is {self.steps}, tokens {self.tokens}; a step is {self.batch.tokens} tokens")
        check_lengths(self.schedule, self.batch.sequence_length)
        if isinstance(self.stages, list):
            check_stages(self.stages, self.num_steps, self.batch.sequence_length)
        if self.stages is not None and self.schedule.first_length is not None:
            raise ConfigError("stages and schedule.first_length both say how long rows are; leave one of them out")
        if self.optimiser.elders < 1 and self.plasticity is not None and self.plasticity.gates is not None:
            raise ConfigError("plasticity.gates press on all units, and optimiser.elders rest; leave one of them out")

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps if self.steps is not None else int((self.tokens or 0) // self.batch.tokens)

    def write(self) -> dict[str, Any]:
        """As plain values, for YAML and JSON."""
        return asdict(self)


def read_config(source: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainConfig:
    """A run from a YAML file or a mapping, with `key.key=value` overrides. Raises ConfigError."""
    values = with_brain(read_settings(source, overrides), source)
    _refuse_unknown(values, TrainConfig, "")
    try:
        return _adapter().validate_python(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from error


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[TrainConfig]:
    return TypeAdapter(TrainConfig)


def _check_model(section: Mapping[str, Any]) -> None:
    """Raise ConfigError for a preset or a key that is not known: a slip that should be told before anything else."""
    if "kind" in section:
        check_spiking(section)
        return
    refuse_unknown(section, besides=("preset",))
    name = section.get("preset")
    if name is not None and name not in PRESETS:
        raise ConfigError(unknown_name("preset", str(name), PRESETS))


def _refuse_unknown(values: Any, owner: type, path: str) -> None:
    """Raise ConfigError for the first key no dataclass knows; free mappings are left to their readers."""
    if not isinstance(values, dict):
        return
    hints = typing.get_type_hints(owner)
    known = list(hints)
    for key, value in values.items():
        if key not in known:
            full = [f"{path}{name}" for name in known]
            raise ConfigError(unknown_name("configuration key", f"{path}{key}", full))
        for inner in _named_in(hints[key]):
            if is_dataclass(inner):
                for part in value if isinstance(value, list) else [value]:
                    _refuse_unknown(part, inner, f"{path}{key}.")


def _named_in(hint: Any) -> Iterator[type]:
    """Every type that a hint names, within lists and unions too."""
    if isinstance(hint, type) and not typing.get_args(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from _named_in(inner)


def _one_line(error: ValidationError) -> str:
    """The first fault: which key, what it got, what it takes."""
    fault = error.errors(include_url=False)[0]
    raised = fault.get("ctx", {}).get("error")
    if isinstance(raised, ConfigError):
        return str(raised)
    where = ".".join(str(step) for step in fault["loc"]) or "the configuration"
    return f"{where} is {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
