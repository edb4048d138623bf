"""Upbringing: what happens to a model's structure between the steps of a run: stages, and growth where it is short.

    after every step:   learned(loss, lessons)       what triggers look at is taken down
                        act(step, rows) -> events    the next stage, a birth, a death; mostly nothing

What it knows is part of a checkpoint, so that a run that is resumed at any stage goes on as if it had not stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from torch import Tensor

from pragnosia.errors import ConfigError
from pragnosia.learning import Lesson
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.plasticity.depth import deepen
from pragnosia.plasticity.development import awake_of, check_awake, check_growable, set_awake, young
from pragnosia.plasticity.triggers import Plateau
from pragnosia.training.events import Event
from pragnosia.training.organism import Costs, Organism, check_cortex
from pragnosia.training.schedules import length_at
from pragnosia.training.stages import StageConfig, check_depth, default_stages, mix_of

if TYPE_CHECKING:
    from pragnosia.training.configuration import TrainConfig


def stages_of(config: TrainConfig, adult: PragnosiaConfig) -> list[StageConfig]:
    """The stages of a run; none where the model is adult from the start. Raises ConfigError."""
    if config.stages is None:
        return []
    if config.stages == "default":
        return default_stages(adult.num_hidden_layers, config.batch.sequence_length)
    return list(config.stages)


def check_upbringing(config: TrainConfig, adult: Any) -> None:
    """What can be known before anything is made. Raises ConfigError."""
    if config.stages is None:
        return
    if not isinstance(adult, PragnosiaConfig):
        raise ConfigError(f"stages are for the cortex, this model is of kind {adult.model_type}; leave them out")
    stages = stages_of(config, adult)
    check_depth(stages, adult.num_hidden_layers)
    for stage in stages:
        mix_of(stage, config.data.sources)
        if stage.layers not in (None, adult.num_hidden_layers):
            check_growable(adult)
        if stage.awake is not None:
            check_awake(adult, stage.awake)


def first_shape(config: TrainConfig, adult: PragnosiaConfig) -> PragnosiaConfig:
    """What a run begins with."""
    stages = stages_of(config, adult)
    return young(adult, stages[0].layers or adult.num_hidden_layers, stages[0].awake) if stages else adult


@final
class Upbringing:
    """The stages of one run, and where it stands in them."""

    def __init__(self, config: TrainConfig, organism: Organism, adult: PragnosiaConfig) -> None:
        self.config, self.organism, self.adult = config, organism, adult
        self.stages = stages_of(config, adult)
        self.active = bool(self.stages)
        if self.active:
            check_cortex(organism.model)
        self.costs = Costs(config.batch.tokens)
        self.number, self.since = 0, 0
        self.operations = 0
        self.plateau = self._plateau()
        if self.stages:
            self._remix()

    @property
    def stage(self) -> StageConfig | None:
        """The one the run is in."""
        return self.stages[self.number] if self.stages else None

    def length(self, step: int) -> int:
        """Tokens in a row at this step."""
        full = self.config.batch.sequence_length
        if self.stage is None:
            return length_at(self.config.schedule, step, full)
        return self.stage.sequence_length or full

    def learned(self, loss: float, lessons: Sequence[Lesson], length: int) -> None:
        """A step has been made."""
        if not self.active:
            return
        self.operations += self.costs.step(self.organism.model.config, length)
        if self.plateau is not None:
            self.plateau.add(loss)

    def act(self, step: int, rows: Tensor | None) -> list[Event]:
        """What has to change after so many steps, done."""
        return [] if self.stage is None else self._grow_up(step, rows)

    def record(self) -> dict[str, Any]:
        """For a line of the log."""
        if not self.active:
            return {}
        counted = self.costs.account(self.organism.model.config, self.config.batch.sequence_length)
        stage = {} if self.stage is None else {"stage": self.stage.name}
        return stage | {
            "parameters": counted.total_parameters,
            "active_parameters": counted.active_parameters,
            "operations": self.operations,
        }

    def state(self) -> dict[str, Any]:
        """For a checkpoint: JSON."""
        if not self.active:
            return {}
        losses = [] if self.plateau is None else self.plateau.losses
        return {"stage": self.number, "since": self.since, "operations": self.operations, "losses": losses}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` said; the model has the shape of that stage already."""
        if not self.active:
            return
        self.number, self.since, self.operations = (int(state[key]) for key in ("stage", "since", "operations"))
        self.plateau = self._plateau()
        if self.plateau is not None:
            self.plateau.losses = [float(loss) for loss in state["losses"]]

    def _plateau(self) -> Plateau | None:
        stage = self.stage
        return None if stage is None or stage.plateau is None else Plateau(stage.plateau)

    def _over(self, step: int) -> str | None:
        """Why the stage is over; None while it is not."""
        stage = self.stage
        assert stage is not None
        if self.number == len(self.stages) - 1:
            return None
        most = stage.most_steps(self.config.num_steps)
        if most is not None and step - self.since >= most:
            return f"{stage.name} took {step - self.since} steps"
        return None if self.plateau is None else self.plateau.reason

    def _grow_up(self, step: int, rows: Tensor | None) -> list[Event]:
        """Enter the next stage, if it is time."""
        reason = self._over(step)
        if reason is None:
            return []
        model, before = self.organism.model, self.organism.parameters
        was, length = model.config, self.length(step)
        self.number, self.since = self.number + 1, step
        stage = self.stages[self.number]
        jump = None
        more = (stage.layers or self.adult.num_hidden_layers) - was.num_hidden_layers
        told = []
        if more > 0:
            jump = self.organism.change(lambda cortex: deepen(cortex, more, seed=self.config.seed), rows)
            told.append(f"{was.num_hidden_layers} -> {was.num_hidden_layers + more} layers")
        awake = stage.awake or awake_of(self.adult)
        if awake is not None and awake != awake_of(was):
            set_awake(model, awake)
            told.append(f"{awake_of(was)} -> {awake} units awake")
        if self.length(step) != length:
            told.append(f"rows of {length} -> {self.length(step)} tokens")
        if self._remix():
            told.append("another mix of data")
        self.plateau = self._plateau()
        now = model.config
        births = 0 if now.units is None else now.units.num_units * (len(now.sparse_layers) - len(was.sparse_layers))
        return [
            Event(
                step=step,
                what="stage",
                reason=reason,
                detail=f"{stage.name}: {', '.join(told) or 'as before'}",
                births=births,
                parameters=(before, self.organism.parameters),
                jump=jump,
            )
        ]

    def _remix(self) -> bool:
        """Draw the data by the stage's shares; whether they are others than before."""
        assert self.stage is not None
        batches = self.organism.batches
        mix = mix_of(self.stage, self.config.data.sources) or batches.corpus.weights
        changed = batches.mix != mix
        batches.remix(mix)
        return changed
