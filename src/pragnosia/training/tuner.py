"""The loop of tuning: read `Tuner.run` from top to bottom and you have read it.

    rows -> loss and slopes, layer by layer -> optimiser        once per step
    log, validation, checkpoint                                 when they are due

What learns is a matter of the method (learners.py); the model's weights may lie on disk all the while.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pragnosia import kernels
from pragnosia.data import TuningBatch, segment_mask
from pragnosia.errors import CheckpointError, InterruptedTrainingError, TrainingError
from pragnosia.inference.stream import slots_of
from pragnosia.training.checkpoint import Checkpoints, random_state, restore_random, write_whole
from pragnosia.training.interruption import Interruption
from pragnosia.training.log import LOG, RunLog, read_log
from pragnosia.training.progress import Bar, Reporter
from pragnosia.training.pupil import Pupil, prepare
from pragnosia.training.run_folder import CHECKPOINTS, REPORT
from pragnosia.training.schedules import rate_factor
from pragnosia.training.snapshot import RANDOM, STATE, Course
from pragnosia.training.tuning import SETTINGS, TuneConfig, open_tuning
from pragnosia.training.window import Window

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class TuneReport:
    """What a run came to."""

    out: str
    steps: int
    tokens: int
    """That were learned: answers, not prompts."""
    loss: float
    """Of the last steps [nats per learned token]."""
    validation_loss_before: float | None
    validation_loss: float | None
    """On held-out conversations, where there are any."""
    parameters: int
    """That were tuned."""
    seconds: float
    seconds_per_step: float
    bytes_read: int
    """From disk, of the model's weights."""
    hit_rate: float | None
    """Of units asked for, those that were in memory, or on the GPU."""
    gpu_hit_rate: float | None = None
    """On the GPU."""
    seconds_waiting: float = 0.0
    """For the disk, in this process, validation and checkpoints included."""
    num_blocks: int | None = None
    """Of the whole model, where it is tuned in blocks."""
    turns: int | None = None
    blocks: dict[str, int] | None = None
    """Those that had a turn, and the parameters of each."""


def tune(config: TuneConfig, *, out: Path | str, resume: bool = False, reporter: Reporter | None = None) -> TuneReport:
    """Tune as configured. `resume` goes on from the last good checkpoint in `out`, or begins where there is none.

    Raises UserError (bad input) or TrainingError.
    """
    folder, reporter = Path(out), reporter or Bar()
    there_before = folder.exists()
    checkpoint = open_tuning(folder, config, resume=resume)
    if resume and checkpoint is None:
        reporter.note(f"nothing to resume: {folder} holds no checkpoint; beginning at step 0")
    try:
        tuner = Tuner(config, prepare(config, folder, reporter), folder, reporter)
    except Exception:
        if checkpoint is None:  # a run that never began leaves nothing
            (folder / SETTINGS).unlink(missing_ok=True)
            if not there_before:
                shutil.rmtree(folder)
        raise
    if checkpoint is not None:
        tuner.read(checkpoint)
        reporter.note(f"resuming at step {tuner.course.step}")
    return tuner.run()


@final
class Tuner:
    """One run."""

    def __init__(self, config: TuneConfig, pupil: Pupil, out: Path, reporter: Reporter) -> None:
        self.config, self.pupil, self.out, self.reporter = config, pupil, out, reporter
        self.learner, self.batches = pupil.learner, pupil.batches
        self.steps = config.num_steps(pupil.batches)
        self.checkpoints = Checkpoints(out / CHECKPOINTS, config.checkpoint.keep)
        self.course, self.window = Course(), Window()
        self.before: float | None = None
        self.model, self.pool = pupil.learner.model, pupil.learner.pool

    def run(self) -> TuneReport:
        """From wherever the run stands to its end."""
        config, course, record = self.config, self.course, None
        if self.config.memory is None:
            kernels.keep_freed_memory()  # within a budget what is freed goes back
        with (
            self._whatever_happens(),
            RunLog(self.out, tensorboard=False, after=course.step) as log,
            Interruption() as interruption,
        ):
            if self.pool is not None:
                pool = self.pool
                self.reporter.watch(lambda: pool.stats().bytes_read)
            self.reporter.start(self.steps, course.step)
            if course.step == 0:
                self.before = self._validate()
            while course.step < self.steps:
                self._step()
                last = course.step >= self.steps
                stopping = interruption.asked and not last
                validating = course.step % config.validate_every == 0 and not last
                if last or stopping or validating or course.step % config.log_every == 0:
                    record = self._record() | ({"validation_loss": self._validate()} if validating else {})
                    log.write({key: value for key, value in record.items() if value is not None})
                if last or stopping or course.step % config.checkpoint.every == 0:
                    self.checkpoints.save(course.step, self.write)
                    self.learner.saved(self.checkpoints)
                self.reporter.advance(course.step, record)
                if stopping:
                    raise InterruptedTrainingError(f"stopped at step {course.step} as asked; go on with --resume")
            return self._finish()

    def _step(self) -> None:
        """Learn from one step's rows; every learned token counts the same, however they fall into batches."""
        started, config = time.perf_counter(), self.config
        self.learner.begin(self.course.step)
        batches = [next(self.batches) for _ in range(config.accumulation)]
        counts = [int((batch.labels != IGNORED).sum()) for batch in batches]
        loss = 0.0
        for batch, count in zip(batches, counts, strict=True):
            share = count / max(1, sum(counts))
            if count:
                mine = self._loss(batch)
                (mine * share).backward()
                loss += mine.item() * share
        self._check_finite("loss", loss)
        factor = rate_factor(config.schedule, self.course.step, self.steps)
        norm = float(self.learner.move(factor))
        self._check_finite("norm of the gradient", norm)
        seconds = time.perf_counter() - started
        self.course.step += 1
        self.course.tokens += sum(counts)
        self.course.seconds += seconds
        self.window.add(loss, norm, len(batches) * batches[0].input_ids.numel(), seconds)

    def _loss(self, batch: TuningBatch) -> Tensor:
        """Mean over the learned tokens."""
        device = self.pupil.device
        with torch.no_grad():
            embedded = self.model.model.embed_tokens(batch.input_ids.to(device))
        output = self.model(
            inputs_embeds=embedded,
            attention_mask=segment_mask(batch.segments.to(device)),
            position_ids=batch.position_ids.to(device),
            labels=batch.labels.to(device),
            use_cache=False,
        )
        return output.loss  # type: ignore[no-any-return]

    @torch.no_grad()
    def _validate(self) -> float | None:
        """Mean loss on the held-out conversations."""
        if self.pupil.held_out is None:
            return None
        total = tokens = 0.0
        for batch in self.pupil.held_out.one_epoch():
            count = int((batch.labels != IGNORED).sum())
            if count:
                total += float(self._loss(batch)) * count
                tokens += count
        return total / tokens if tokens else None

    def _record(self) -> dict[str, Any]:
        """One line of the log; the next one starts counting here."""
        means, self.window = self.window.means(), Window()
        factor = rate_factor(self.config.schedule, self.course.step - 1, self.steps)
        record = {
            "step": self.course.step,
            "tokens": self.course.tokens,
            "epoch": self.batches.epochs,
            **means,
            "learning_rate": self.config.optimiser.learning_rate * factor,
        }
        if self.pool is not None:
            stats = self.pool.stats()
            record |= {"bytes_read": stats.bytes_read, **self._found()}
            if (on_gpu := slots_of(self.model)) is not None:
                record["bytes_copied"] = on_gpu.bytes_copied
            record["seconds_waiting"] = stats.seconds_waiting
        return record

    def _found(self) -> dict[str, Any]:
        """Of the units asked for, those that were here; what the host's pool is asked for is what a GPU lacks."""
        if self.pool is None:
            return {"hit_rate": None}
        stats, on_gpu = self.pool.stats(), slots_of(self.model)
        if on_gpu is None:
            return {"hit_rate": stats.hit_rate}
        asked = max(on_gpu.hits + on_gpu.misses, 1)
        return {"hit_rate": 1 - stats.misses / asked, "gpu_hit_rate": on_gpu.hit_rate}

    def write(self, folder: Path) -> None:
        """Fill a folder with all that the next step's numbers depend on."""
        learner = self.learner.write(folder)
        tensors, numbers = random_state()
        save_file(tensors, folder / RANDOM)
        state: dict[str, Any] = {"course": asdict(self.course), "batches": self.batches.state_dict()}
        state |= {"random": numbers, "before": self.before, "learner": learner}
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")

    def read(self, folder: Path) -> None:
        """Take up what was written. Raises CheckpointError where it is not of this model."""
        try:
            state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
            self.learner.read(folder, state.get("learner", {}))
            random = load_file(folder / RANDOM)
        except (OSError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot read the checkpoint {folder}: {error}; delete it to use the one before"
            ) from error
        for key, value in state["course"].items():
            setattr(self.course, key, value)
        self.before = state["before"]
        self.batches.load_state_dict(state["batches"])
        restore_random(random, state["random"])

    def _finish(self) -> TuneReport:
        """Leave what was learned where others find it, and sum up."""
        self.learner.end(self.course.step)
        validation_loss = self._validate()
        stats, found = self.pool.stats() if self.pool is not None else None, self._found()
        result = self.learner.result()  # which may close the pool
        report = TuneReport(
            out=str(self.out),
            steps=self.course.step,
            tokens=self.course.tokens,
            loss=read_log(self.out / LOG)[-1]["loss"],
            validation_loss_before=self.before,
            validation_loss=validation_loss,
            seconds=self.course.seconds,
            seconds_per_step=self.course.seconds / max(1, self.course.step),
            bytes_read=stats.bytes_read if stats else 0,
            seconds_waiting=stats.seconds_waiting if stats else 0.0,
            **found,
            **result,
        )
        write_whole(self.out / REPORT, json.dumps(asdict(report), indent=1))
        self.learner.clean()
        return report

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} is {value} at step {self.course.step + 1}; {self._last_good()}; "
                "lower --learning-rate, or clip harder"
            )

    def _last_good(self) -> str:
        latest = self.checkpoints.latest()
        return f"the last good checkpoint is {latest}" if latest else "there is no checkpoint yet"

    @contextmanager
    def _whatever_happens(self) -> Iterator[None]:
        """Take the bar off the screen, and say in one line what went wrong on disk."""
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self._last_good()}: mend it and go on with --resume") from error
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise TrainingError(
                f"cannot write {self.out / LOG} or a checkpoint at step {self.course.step}: {reason}; "
                f"{self._last_good()}; make room and go on with --resume"
            ) from error
        finally:
            self.reporter.stop()
