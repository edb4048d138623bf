"""Stages: a run in named parts, each with its own depth, length of rows, units awake and mix of data.

    stages:
      - {name: infant, layers: 2, sequence_length: 64, share: 0.1}
      - {name: child, layers: 4, data: {easy.txt: 0.5, hard.txt: 0.5}, plateau: {window: 100, gain: 0.005}}
      - {name: adult}

A stage ends after `steps`, after a `share` of the run's steps, or at a plateau of the loss (then at the latest after
the steps, if they are given too); the last one lasts as long as the run. `stages: default` is five of them: 2, 4, 8,
12 and all layers, over rows of a quarter, a half and all of the length, as far as the model has so many layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pragnosia.data.mixture import Mixture
from pragnosia.errors import ConfigError, unknown_name
from pragnosia.plasticity.triggers import PlateauConfig

_DEFAULT = (("newborn", 2, 0.08, 4), ("infant", 4, 0.1, 2), ("child", 8, 0.12, 1), ("adolescent", 12, 0.15, 1))
_SHORTEST = 16
"""Rows of the default stages are not cut below it."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One part of a run; what is None is as in the run's own configuration."""

    name: str
    layers: int | None = None
    """None: all that `model` describes."""
    sequence_length: int | None = None
    """Tokens in a row; a step has as many tokens as ever."""
    awake: int | None = None
    """Units a token wakes in a layer: the sparsity."""
    data: dict[str, float] | None = None
    """The shares of `data.sources`, by their names; 0 leaves one out."""
    steps: int | None = None
    share: float | None = None
    """Of the run's steps."""
    plateau: PlateauConfig | None = None

    def __post_init__(self) -> None:
        for key in ("layers", "sequence_length", "awake", "steps"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{key} of stage {self.name!r} is {value}; it must be at least 1")
        if self.share is not None and not 0 < self.share < 1:
            raise ConfigError(f"share of stage {self.name!r} is {self.share}; it must lie between 0 and 1")
        if self.steps is not None and self.share is not None:
            raise ConfigError(f"stage {self.name!r} has steps and share; give one of them")
        shares = (self.data or {"": 1.0}).values()
        if self.data is not None and (not self.data or any(not share >= 0 for share in shares) or sum(shares) <= 0):
            raise ConfigError(
                f"data of stage {self.name!r} is {self.data}; give each source a share, not all of them 0"
            )

    @property
    def ends(self) -> bool:
        """Whether anything ends it before the run does."""
        return self.steps is not None or self.share is not None or self.plateau is not None

    def most_steps(self, num_steps: int) -> int | None:
        """After so many it ends at the latest; None: only at a plateau, or with the run."""
        return self.steps if self.share is None else max(1, round(self.share * num_steps))


def default_stages(layers: int, length: int) -> list[StageConfig]:
    """Five stages for an adult of so many layers, or fewer where it has not more than 12."""
    made = [
        StageConfig(name=name, layers=depth, share=share, sequence_length=_cut(length, divisor))
        for name, depth, share, divisor in _DEFAULT
        if depth < layers
    ]
    return [*made, StageConfig(name="adult")]


def _cut(length: int, divisor: int) -> int:
    """The length over the largest power of two up to `divisor` that leaves rows whole and not too short."""
    while divisor > 1 and (length % divisor or length // divisor < _SHORTEST):
        divisor //= 2
    return length // divisor


def check_stages(stages: Sequence[StageConfig], num_steps: int, length: int) -> None:
    """What can be said of them without the model. Raises ConfigError."""
    if not stages:
        raise ConfigError("stages is empty; name at least one stage, write `default`, or leave it out")
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two stages are named {name!r}; give each its own name")
    *earlier, last = stages
    for stage in earlier:
        if not stage.ends:
            raise ConfigError(f"nothing ends stage {stage.name!r}; give it steps, a share of the run, or a plateau")
    if last.ends:
        raise ConfigError(
            f"the last stage {last.name!r} lasts as long as the run; leave out its steps, share and plateau"
        )
    _check_growing(stages, length)
    told = sum(stage.most_steps(num_steps) or 0 for stage in earlier)
    if told >= num_steps:
        raise ConfigError(
            f"the stages before {last.name!r} take {told} steps, the run has {num_steps}; leave some for the last one"
        )


def _check_growing(stages: Sequence[StageConfig], length: int) -> None:
    """Layers and rows may become more and longer from stage to stage, not fewer and shorter."""
    for key, full, what in (("layers", None, "layers"), ("sequence_length", length, "tokens in a row")):
        for one, other in pairwise(stages):
            before, after = (full if (value := getattr(stage, key)) is None else value for stage in (one, other))
            if (math.inf if after is None else after) < (math.inf if before is None else before):
                raise ConfigError(
                    f"the stages shrink: {one.name!r} has {'all' if before is None else before} {what}, "
                    f"{other.name!r} after it {after}; give each as many {what} as the one before, or more"
                )
    for stage in stages:
        if stage.sequence_length is not None and length % stage.sequence_length:
            raise ConfigError(
                f"sequence_length of stage {stage.name!r} is {stage.sequence_length}, which does not divide "
                f"batch.sequence_length {length}; rows are cut, so take a divisor"
            )


def check_depth(stages: Sequence[StageConfig], layers: int) -> None:
    """Raise ConfigError for a stage of more layers than the adult has, or a list that does not end with it."""
    for stage in stages:
        if stage.layers is not None and stage.layers > layers:
            raise ConfigError(
                f"stage {stage.name!r} has {stage.layers} layers, the model has {layers}; "
                "model.num_hidden_layers is what the run ends with"
            )
    last = stages[-1]
    if last.layers is not None and last.layers < layers:
        raise ConfigError(
            f"the last stage {last.name!r} has {last.layers} layers, the model has {layers}; leave its layers out"
        )


def mix_of(stage: StageConfig, sources: Sequence[str] | Mapping[str, float]) -> tuple[float, ...] | None:
    """The shares of the parts of a run's data in a stage, in their order; None: the data's own. Raises ConfigError."""
    if stage.data is None:
        return None
    names = source_names(sources)
    if names is None:
        raise ConfigError(
            f"stage {stage.name!r} has a mix of its own, and data.sources have no shares; "
            "give each source one, as {a.txt: 0.5}"
        )
    for name in stage.data:
        if name not in names:
            raise ConfigError(unknown_name(f"source of stage {stage.name!r}", name, names))
    total = sum(stage.data.values())
    return tuple(stage.data.get(name, 0.0) / total for name in names)


def source_names(sources: Sequence[str] | Mapping[str, float]) -> list[str] | None:
    """The names of sources that have shares, in order; None where they have none."""
    if isinstance(sources, Mapping):
        return list(sources)
    heads = [str(source).rpartition("@")[0] for source in sources]
    return heads if len(Mixture.parse(list(sources)).weights) == len(heads) and all(heads) else None
