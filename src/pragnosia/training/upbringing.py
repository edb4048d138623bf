"""Upbringing: what happens to a model's structure between the steps of a run: stages, and growth where it is short.

    after every step:   learned(loss, lessons)       what triggers look at is taken down
                        act(step, rows) -> events    the next stage, a birth, a death; mostly nothing

What it knows is part of a checkpoint, so that a run that is resumed at any stage goes on as if it had not stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from torch import Tensor

from pragnosia.errors import BudgetError, ConfigError
from pragnosia.learning import Lesson
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.plasticity.depth import deepen
from pragnosia.plasticity.development import awake_of, check_awake, check_growable, set_awake, young
from pragnosia.plasticity.triggers import Plateau
from pragnosia.training.events import Event
from pragnosia.training.organism import Costs, Organism, check_cortex
from pragnosia.training.processes import here
from pragnosia.training.schedules import length_at
from pragnosia.training.stages import StageConfig, check_depth, default_stages, mix_of
from pragnosia.training.triggers import Triggers
from pragnosia.units import format_count, plural

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
    if config.stages is None and config.plasticity is None:
        return
    if not isinstance(adult, PragnosiaConfig):
        kind = adult.model_type
        raise ConfigError(f"stages and plasticity are for the cortex, this model is of kind {kind}; leave them out")
    stages = stages_of(config, adult)
    if config.start is not None and (first := first_shape(config, adult)).num_hidden_layers < adult.num_hidden_layers:
        raise ConfigError(
            f"the first stage has {first.num_hidden_layers} layers, the model at {config.start} has "
            f"{adult.num_hidden_layers}: what is there cannot be young again; leave out start, or the stages' layers"
        )
    if stages:
        check_depth(stages, adult.num_hidden_layers)
    for stage in stages:
        mix_of(stage, config.data.sources)
        if stage.layers not in (None, adult.num_hidden_layers):
            check_growable(adult)
        if stage.awake is not None:
            check_awake(adult, stage.awake)
    if config.plasticity is not None:
        config.plasticity.check(adult)


def check_budget(config: TrainConfig, adult: PragnosiaConfig) -> None:
    """Raise BudgetError where the plan itself, before anything grows by itself, takes more than the budgets.

    The vocabulary is part of the size, so it is asked when the tokenizer is there.
    """
    plasticity = config.plasticity
    if plasticity is None:
        return
    stages = stages_of(config, adult)
    costs, full, left = Costs(config.batch.tokens * here().world_size), config.batch.sequence_length, config.num_steps
    size = costs.account(adult, full).total_parameters
    if size > plasticity.max_parameters:
        raise BudgetError(
            f"plasticity.max_parameters is {format_count(plasticity.max_parameters)}, the model has "
            f"{format_count(size)} before it grows; raise the budget, or take a smaller model"
        )
    needed = 0
    for stage in stages[:-1]:
        steps = 0 if stage.plateau is not None else stage.most_steps(config.num_steps) or 0  # at worst it is short
        shape = young(adult, stage.layers or adult.num_hidden_layers, stage.awake)
        needed += steps * costs.step(shape, stage.sequence_length or full)
        left -= steps
    needed += left * costs.step(adult, full)
    if plasticity.max_operations is not None and needed > plasticity.max_operations:
        raise BudgetError(
            f"plasticity.max_operations is {format_count(plasticity.max_operations)}, the run takes up to "
            f"{format_count(needed)} before anything grows; raise the budget, or train for fewer steps"
        )


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
        self.triggers = (
            None
            if config.plasticity is None
            else Triggers(config.plasticity, config.seed, config.optimiser.newborn_steps)
        )
        self.refused: list[str] = []
        """What was said of changes that could not be made: each is told once."""
        self.active = bool(self.stages) or self.triggers is not None
        if self.active:
            check_cortex(organism.model)
        self.costs = Costs(config.batch.tokens * here().world_size)
        self.number, self.since = 0, 0
        self.operations = 0
        self.plateau = self._plateau()
        if self.stages:
            self._remix()

    @property
    def stage(self) -> StageConfig | None:
        """The one the run is in."""
        return self.stages[self.number] if self.stages else None

    @property
    def adult_now(self) -> bool:
        """Whether no further stage comes."""
        return not self.stages or self.number == len(self.stages) - 1

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
        if self.triggers is not None and self.adult_now:
            self.triggers.learned(loss, lessons, self.organism.model)

    def act(self, step: int, rows: Tensor | None) -> list[Event]:
        """What has to change after so many steps, done."""
        events = [] if self.stage is None else self._grow_up(step, rows)
        if self.triggers is None or not self.adult_now or events:
            return events
        return self._follow_triggers(self.triggers, step, rows)

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
        state = {"stage": self.number, "since": self.since, "operations": self.operations, "losses": losses}
        if self.triggers is not None:
            state |= {"triggers": self.triggers.state(), "refused": self.refused}
        return state

    def load_state(self, state: Mapping[str, Any], step: int) -> None:
        """Take up what `state` said after so many steps; the model has the shape of that stage already.

        Raises BudgetError where a run that was made longer would go beyond its budget.
        """
        if not self.active:
            return
        self.number, self.since, self.operations = (int(state[key]) for key in ("stage", "since", "operations"))
        self.plateau = self._plateau()
        if self.plateau is not None:
            self.plateau.losses = [float(loss) for loss in state["losses"]]
        if self.triggers is not None:
            self.triggers.load_state(state["triggers"])
            self.refused = [str(line) for line in state["refused"]]
            over = self._over_budget(self.organism.model.config, step) if self.adult_now else None
            if over is not None:
                raise BudgetError(f"the run would come to {over}; plasticity bounds it, so train for fewer steps")

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
            return f"{stage.name} took {plural(step - self.since, 'step')}"
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

    def _follow_triggers(self, triggers: Triggers, step: int, rows: Tensor | None) -> list[Event]:
        """Make the most pressing change that is called for and that the budgets allow."""
        size = self.organism.parameters
        try:
            proposals = triggers.look(step, self.organism.model)
        except ConfigError as error:
            return self._refuse(step, "a trigger", str(error))
        events: list[Event] = []
        for proposal in proposals:
            over = self._over_budget(proposal.shape, step)
            if over is not None:
                events += self._refuse(
                    step, proposal.reason, f"{proposal.what}: {proposal.detail}: {over}", proposal.what
                )
                continue
            try:
                jump = self.organism.change(proposal.verb, rows)
            except ConfigError as error:
                events += self._refuse(step, proposal.reason, str(error))
                continue
            triggers.changed()
            made = Event(
                step=step,
                what=proposal.what,
                reason=proposal.reason,
                detail=proposal.detail,
                births=proposal.births,
                deaths=proposal.deaths,
                parameters=(size, self.organism.parameters),
                jump=jump,
            )
            return [*events, made]
        return events

    def _over_budget(self, shape: PragnosiaConfig, step: int) -> str | None:
        """Which budget a shape would go beyond, were it to learn for the rest of the run."""
        plasticity, full = self.config.plasticity, self.config.batch.sequence_length
        assert plasticity is not None
        size = self.costs.account(shape, full).total_parameters
        if size > plasticity.max_parameters and size > self.organism.parameters:
            most = format_count(plasticity.max_parameters)
            return f"{format_count(size)} parameters, the budget is {most}"
        needed = self.operations + (self.config.num_steps - step) * self.costs.step(shape, full)
        if plasticity.max_operations is not None and needed > plasticity.max_operations:
            most = format_count(plasticity.max_operations)
            return f"{format_count(needed)} operations by the end of the run, the budget is {most}"
        return None

    def _refuse(self, step: int, reason: str, why: str, key: str | None = None) -> list[Event]:
        """Say once that a change was called for and not made."""
        if (key or why) in self.refused:
            return []
        self.refused.append(key or why)
        size = self.organism.parameters
        return [Event(step=step, what="refused", reason=reason, detail=why, parameters=(size, size))]

    def _remix(self) -> bool:
        """Draw the data by the stage's shares; whether they are others than before."""
        assert self.stage is not None
        batches = self.organism.batches
        mix = mix_of(self.stage, self.config.data.sources) or batches.corpus.weights
        changed = batches.mix != mix
        batches.remix(mix)
        return changed
