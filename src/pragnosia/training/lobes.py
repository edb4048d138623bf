"""A run whose data are labelled by domain, each of them some lobe's: three stages after MiCRo (learning/lobes.py).

    lobes: {supervision: 0.1, experts: 0.4, routers: 0.1}
    data: {sources: [language=books.txt, reasoning=maths.txt]}

The first share of the steps trains the experts of each lobe on their own domain, and the routers to tell domains
apart; this supervision falls in a straight line to nothing at the end of the stage. Then the routers learn alone, by
the loss, and then everything. Domains give equal shares of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from pragnosia.data.domains import as_mixture, read_domains
from pragnosia.data.mixture import Mixture
from pragnosia.errors import ConfigError, unknown_name
from pragnosia.learning.lobes import DomainLesson, LobeRule
from pragnosia.model.configuration import PragnosiaConfig

if TYPE_CHECKING:
    import torch

    from pragnosia.data import Batches
    from pragnosia.training.configuration import TrainConfig


@dataclass(frozen=True, kw_only=True)
class LobesConfig:
    """How lobes come to differ."""

    supervision: float = 0.1
    """Weight of the routers' cross-entropy at the first step; it falls to 0 at the end of the first stage."""
    experts: float = 0.4
    """Share of the steps in which every row wakes its own lobe alone."""
    routers: float = 0.1
    """Share of the steps after that in which the routers learn alone."""

    def __post_init__(self) -> None:
        if not self.supervision >= 0:
            raise ConfigError(f"lobes.supervision is {self.supervision}; it must not be negative")
        for key in ("experts", "routers"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"lobes.{key} is {getattr(self, key)}; it is a share of the steps, from 0 to 1")
        if self.experts + self.routers > 1:
            raise ConfigError(
                f"lobes.experts and lobes.routers are {self.experts} and {self.routers} of the steps, together more "
                "than all of them; lower one"
            )

    def stage(self, step: int, num_steps: int) -> tuple[str, float]:
        """What learns in a step, and how much the routers are told."""
        first, second = round(self.experts * num_steps), round((self.experts + self.routers) * num_steps)
        if step < first:
            return "experts", self.supervision * (1 - step / first)
        return ("routers" if step < second else "all"), 0.0


def mixture_of(config: TrainConfig) -> Mixture:
    """What a run reads. Raises DataError."""
    if config.lobes is None:
        return Mixture.parse(config.data.sources)
    return as_mixture(read_domains(config.data.sources))


def lobe_rule(config: TrainConfig, autocast: torch.dtype | None) -> LobeRule:
    """How such a run learns. Raises ConfigError for what does not go together."""
    if config.rule != "backprop" or config.learning:
        raise ConfigError(f"lobes learn by backprop, the rule is {config.rule!r}; leave rule and learning out")
    if config.stages is not None:
        raise ConfigError("lobes and stages both divide the run; leave one of them out")
    return LobeRule(autocast=autocast)


def check_lobes(config: TrainConfig, shape: Any) -> None:
    """Every domain is a lobe's, and every lobe has one. Raises ConfigError or DataError."""
    if config.lobes is None:
        return
    organ = shape.units if isinstance(shape, PragnosiaConfig) else None
    if organ is None:
        raise ConfigError("this model is dense: it has no lobes to specialise; give it experts, and experts.lobes")
    if shape.exits is not None:
        raise ConfigError("a model with exits cannot learn by lobes; leave exits or lobes out")
    lobes = dict(organ.lobes or {})
    domains = read_domains(config.data.sources)
    for name in domains:
        if name not in lobes:
            raise ConfigError(unknown_name("domain", name, lobes) + "; a domain is named as the lobe that it is for")
    for label, count in lobes.items():
        if label not in domains:
            raise ConfigError(f"lobe {label!r} has no domain; add {label}=PATH to the data, or leave the lobe out")
        if count < organ.thalamus.num_awake:
            raise ConfigError(
                f"lobe {label!r} has {count} units, and {organ.thalamus.num_awake} wake for a token: its own would not "
                "do; give it more, or lower num_awake"
            )


@final
class Lobes:
    """Whose rows a run reads, batch by batch."""

    def __init__(self, config: TrainConfig, batches: Batches) -> None:
        assert config.lobes is not None
        self.config, self.num_steps, self.batches = config.lobes, config.num_steps, batches
        self.names = tuple(read_domains(config.data.sources))

    def lesson(self, step: int, num_rows: int) -> DomainLesson:
        """Of the batch that was just read, which may have been cut into more and shorter rows."""
        stage, supervision = self.config.stage(step, self.num_steps)
        parts = self.batches.last_parts
        pieces = num_rows // len(parts)
        return DomainLesson(tuple(self.names[part] for part in parts for _ in range(pieces)), stage, supervision)
