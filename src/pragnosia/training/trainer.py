"""The loop: read `Trainer.run` from top to bottom and you have read training.

    batches -> rule.learn -> optimisers.step -> rule.settle -> average        once per step
    log, validation, checkpoint                                               when they are due

The loop knows no learning rule, no optimiser and no data by name; they come from tables, by the configuration.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from torch import Tensor

from pragnosia import kernels
from pragnosia.data import Batches, shorten
from pragnosia.data.whole import whole_folder
from pragnosia.errors import DataError, InterruptedTrainingError, TrainingError
from pragnosia.learning import Lesson
from pragnosia.training.assembly import Materials, assemble, check_plan, make_rule
from pragnosia.training.average import Average
from pragnosia.training.checkpoint import Checkpoints, write_whole
from pragnosia.training.configuration import TrainConfig, read_config
from pragnosia.training.curves import draw_run
from pragnosia.training.events import Event
from pragnosia.training.exits import lesson_at
from pragnosia.training.growing import awaken, resting, settle
from pragnosia.training.interruption import Interruption
from pragnosia.training.lobes import Lobes
from pragnosia.training.log import LOG, RunLog, read_log
from pragnosia.training.optimisers import Optimisers, embedded_in
from pragnosia.training.organism import Organism
from pragnosia.training.page import PAGE, write_page
from pragnosia.training.processes import here, share_gradients, share_lessons
from pragnosia.training.progress import Bar, Reporter
from pragnosia.training.rewiring import rewired
from pragnosia.training.run_folder import CHECKPOINTS, REPORT, SETTINGS, clear_run, is_run, open_run
from pragnosia.training.schedules import rate_factor
from pragnosia.training.snapshot import Course, Snapshot, save_model
from pragnosia.training.upbringing import Upbringing
from pragnosia.training.utilisation import utilisation
from pragnosia.training.validation import Validation, bits_per_byte
from pragnosia.training.window import Window, wakefulness

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a run came to."""

    out: str
    steps: int
    tokens: int
    bits_per_byte: float
    """On held-out text; on the last training text where nothing was held out."""
    tokens_per_second: float
    seconds: float


def train(
    config: TrainConfig | Path | str | Mapping[str, Any],
    *,
    data: Sequence[str] = (),
    out: Path | str | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> TrainReport:
    """Train as configured; `data` replaces the configured sources.

    `resume` goes on from the last good checkpoint in `out`; where there is none it says so and begins, so that one
    command serves a job that may be stopped at any time. Raises UserError (bad input) or TrainingError.
    """
    name = Path(config).stem if isinstance(config, Path | str) else "run"
    settings = config if isinstance(config, TrainConfig) else read_config(config, overrides)
    if data:
        settings = replace(settings, data=replace(settings.data, sources=list(data)))
    folder = Path(out) if out is not None else Path("runs") / name
    reporter = reporter or Bar()
    check_plan(settings, folder)
    there_before, going_on = folder.exists(), resume and is_run(folder)
    checkpoint = open_run(folder, settings, resume=resume)
    if resume and checkpoint is None:
        reporter.note(f"nothing to resume: {folder} holds no checkpoint; beginning at step 0")
    try:
        trainer = Trainer(settings, assemble(settings, folder, reporter, checkpoint), folder, reporter)
    except Exception:
        if not going_on:  # what a run being resumed has made stays
            clear_run(folder)
            if not there_before:
                shutil.rmtree(folder)
        raise
    if checkpoint is not None:
        trainer.snapshot.read(checkpoint)
        reporter.note(f"resuming at step {trainer.course.step}")
    return trainer.run()


@final
class Trainer:
    """One run."""

    def __init__(self, config: TrainConfig, materials: Materials, out: Path, reporter: Reporter) -> None:
        self.config, self.out, self.reporter = config, out, reporter
        self.model, self.tokenizer, self.corpus = materials.model, materials.tokenizer, materials.corpus
        batch, autocast = config.batch, torch.bfloat16 if config.precision == "bf16" else None
        self.rule = make_rule(config)
        learners = list(self.rule.changes(self.model))
        self.optimisers = Optimisers(learners, embedded_in(self.model), config.optimiser)
        awaken(self.model, self.optimisers)
        self.average = Average(learners, config.ema) if config.ema else None
        self.batches = Batches(
            *(self.corpus, batch.batch_size, batch.sequence_length, config.seed),
            place=here(),
            curriculum=materials.curriculum,
        )
        self.lobes = Lobes(config, self.batches) if config.lobes is not None else None
        self.validation = Validation(self.corpus, config, autocast)
        self.checkpoints = Checkpoints(out / CHECKPOINTS, config.checkpoint.keep)
        self.course = Course()
        organism = Organism(self.model, self.rule, self.optimisers, self.average, self.batches, autocast)
        self.upbringing = Upbringing(config, organism, materials.adult)
        self.snapshot = Snapshot(
            *(self.course, self.model, self.tokenizer, self.optimisers, self.average, self.batches, self.upbringing)
        )
        self.window = Window()
        self.lessons: list[Lesson] = []
        self.rows: Tensor | None = None
        self.load: list[list[float]] = []
        if config.compile:
            self.model.compile()

    def run(self) -> TrainReport:
        """From wherever the run stands to its end."""
        config, course = self.config, self.course
        steps, logging = config.num_steps, config.logging
        self.model.train()
        kernels.keep_freed_memory()
        with (
            self._whatever_happens(),
            RunLog(self.out, tensorboard=logging.tensorboard, after=course.step) as log,
            Interruption() as interruption,
        ):
            self.reporter.start(steps, course.step)
            while course.step < steps:
                self._step()
                last = course.step == steps
                events = [] if last else [*self.upbringing.act(course.step, self.rows), *self._rewired()]
                stopping = interruption.asked and not last  # asked once: what comes later waits for the next step
                validating = self.validation.possible and (last or course.step % logging.validate_every == 0)
                saving = last or stopping or course.step % config.checkpoint.every == 0
                record = None
                if validating or saving or events or course.step % logging.every == 0:
                    record = self._record(events) | (self._validate() if validating else {})
                    log.write(record)
                if saving:
                    self.checkpoints.save(course.step, self.snapshot.write)
                self.reporter.advance(course.step, record)
                if stopping:
                    raise InterruptedTrainingError(f"stopped at step {course.step} as asked; go on with --resume")
            return self._finish()

    def _step(self) -> None:
        """Learn from one step's tokens."""
        started, config, course = time.perf_counter(), self.config, self.course
        length = self.length = self.upbringing.length(course.step)
        share = 1 / config.batch.accumulation

        self.optimisers.zero()
        self.lessons = []
        for _ in range(config.batch.accumulation):
            self.rows = shorten(next(self.batches), length).to(self.model.device)
            self.lessons.append(self._learn(self.rows, share))
        share_gradients(self.optimisers.weights.values())
        self.lessons = share_lessons(self.lessons)
        loss = sum(float(lesson.loss) for lesson in self.lessons) * share
        self._check_finite("loss", loss)
        norm = float(self.optimisers.step(rate_factor(config.schedule, course.step, config.num_steps)))
        self._check_finite("norm of the gradient", norm)
        rested = resting(self.model, self.optimisers)
        self.rule.settle(self.model, self.lessons)
        settle(self.model, self.optimisers, rested)
        course.step += 1
        if self.average is not None:
            self.average.update(course.step)
        self.upbringing.learned(loss, self.lessons, length)

        seconds = time.perf_counter() - started
        tokens = config.batch.tokens * here().world_size
        course.tokens += tokens
        course.seconds += seconds
        self.window.add(loss, norm, tokens, seconds)

    def _rewired(self) -> Sequence[Event]:
        """Synapses that died and grew, where they do."""
        run = (self.model, self.rule, self.optimisers, self.average)
        return rewired(self.config.rewiring, *run, seed=self.config.seed, step=self.course.step)

    def _learn(self, rows: Tensor, share: float) -> Lesson:
        """One batch; where the model has exits, they have their lesson, and so have lobes that shall differ."""
        shape: Any = self.model.config
        exits = lesson_at(shape.exits, self.course.step, self.config.num_steps, shape.num_hidden_layers, len(rows))
        told: dict[str, Any] = {} if exits is None else {"exits": exits}
        if self.lobes is not None:
            told["domains"] = self.lobes.lesson(self.course.step, len(rows))
        return self.rule.learn(self.model, rows, share, **told)

    def _record(self, events: Sequence[Event]) -> Record:
        """One line of the log; the next one starts counting here."""
        means, self.window = self.window.means(), Window()
        course, config, done = self.course, self.config, self.course.step - 1
        rate = config.optimiser.learning_rate * rate_factor(config.schedule, done, config.num_steps)
        return {
            "step": course.step,
            "tokens": course.tokens,
            "epoch": max(self.batches.epochs),
            **means,
            "bits_per_byte": bits_per_byte(means["loss"], self.corpus.bytes_per_token),
            "learning_rate": rate,
            "sequence_length": self.length,
            **wakefulness(self.lessons[-1]),
            **self.upbringing.record(),
            **({"events": [event.write() for event in events]} if events else {}),
            **({"utilisation": parts} if (parts := utilisation(self.lessons, self.model)) else {}),
        }

    def _validate(self) -> Record:
        """Held-out loss of the model this run is for, and of the average that stands beside it."""
        average = self.average
        with self._published():
            held_out = self.validation.measure(self.model)
        self.load = held_out.load
        record = {"validation_loss": held_out.loss, "validation_bits_per_byte": held_out.bits_per_byte}
        if average is not None and average.config.save == "separate":
            with average.in_place():
                record["average_bits_per_byte"] = self.validation.measure(self.model).bits_per_byte
        return record

    @contextmanager
    def _published(self) -> Iterator[None]:
        """Within the context the model holds the weights that the run is for."""
        averaged = self.average is not None and self.average.config.save == "model"
        with self.average.in_place() if averaged and self.average is not None else nullcontext():
            yield

    def _finish(self) -> TrainReport:
        """Save the model where `from_pretrained` finds it, draw the curves, sum up."""
        with self._published(), whole_folder(self.out) as partial:
            save_model(self.model, self.tokenizer, partial)
        if self.average is not None and self.average.config.save == "separate":
            with self.average.in_place(), whole_folder(self.out / "ema") as partial:
                save_model(self.model, self.tokenizer, partial)
        records, course = read_log(self.out / LOG), self.course
        held_out = [record["validation_bits_per_byte"] for record in records if "validation_bits_per_byte" in record]
        report = TrainReport(
            out=str(self.out),
            steps=course.step,
            tokens=course.tokens,
            bits_per_byte=held_out[-1] if held_out else records[-1]["bits_per_byte"],
            tokens_per_second=course.tokens / course.seconds,
            seconds=course.seconds,
        )
        if self.config.logging.curves:
            if not self.lessons and self.validation.possible:  # resumed after the last step
                self._validate()
            draw_run(records, self.load, self.out / "curves.png", self.out.name)
            settings = (self.out / SETTINGS).read_text(encoding="utf-8")
            write_page(records, self.out / PAGE, self.out.name, asdict(report), settings)
        write_whole(self.out / REPORT, json.dumps(asdict(report), indent=1))
        return report

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} is {value} at step {self.course.step + 1}; {self._last_good()}; "
                "lower optimiser.learning_rate or lengthen schedule.warmup_steps"
            )

    def _last_good(self) -> str:
        latest = self.checkpoints.latest()
        if latest is not None:
            return f"the last good checkpoint is {latest}"
        left = ", ".join(sorted(path.name for path in self.out.iterdir() if not path.name.startswith(".")))
        return f"there is no checkpoint yet, {self.out} holds only {left}"

    @contextmanager
    def _whatever_happens(self) -> Iterator[None]:
        """Take the bar off the screen, and say in one line that the disk is full."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise self._unwritable(error) from error
        except DataError as error:
            if isinstance(error.__cause__, OSError):
                raise self._unwritable(error.__cause__) from error
            raise
        finally:
            self.reporter.stop()

    def _unwritable(self, error: Exception) -> TrainingError:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        return TrainingError(
            f"cannot write {self.out} at step {self.course.step}: {reason}; {self._last_good()}; "
            "make room and go on with --resume"
        )
