"""Tuning: from a model, conversations and a budget to adapters; everything that can be wrong is found before the loop.

conversations -> examples -> rows        model on disk -> plan -> frozen model with adapters
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from pragnosia.data import TuningBatches, read_conversations, tokenize_conversations
from pragnosia.errors import ConfigError
from pragnosia.inference.budget import Tuning, as_bytes
from pragnosia.inference.directory import check_speaker
from pragnosia.inference.loading import load_config, load_model, load_tokenizer
from pragnosia.inference.stream import build, planned, pool_of
from pragnosia.kernels.pool import UnitPool
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import Cortex
from pragnosia.training.assembly import sow
from pragnosia.training.checkpoint import CheckpointConfig, Checkpoints, write_whole
from pragnosia.training.optimisers import OptimiserConfig
from pragnosia.training.progress import Reporter
from pragnosia.training.run_folder import CHECKPOINTS
from pragnosia.training.schedules import ScheduleConfig
from pragnosia.tuning.configuration import LoraConfig
from pragnosia.tuning.lora import attach, count_parameters
from pragnosia.tuning.recompute import recompute
from pragnosia.units import format_bytes, format_count

SETTINGS = "tune.json"
# What a resumed run may see differently without becoming another run.
_FREE = ("memory", "steps", "epochs", "checkpoint", "log_every", "validate_every")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """One run, completely."""

    model: str
    data: list[str]
    lora: LoraConfig = field(default_factory=LoraConfig)
    memory: str | None = None
    """A budget for the whole process, as in 4GiB; without, the model is held in memory."""
    batch_size: int = 1
    """Rows that pass through the model together."""
    sequence_length: int = 1024
    accumulation: int = 1
    """Batches whose gradients are summed before a step."""
    steps: int | None = None
    epochs: float = 1.0
    """How often the conversations are read, where no steps are given."""
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(learning_rate=2e-4, weight_decay=0.0))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(warmup_steps=5, floor=0.0))
    learn_prompts: bool = False
    packing: bool = True
    """Several conversations share a row; none sees another."""
    validation_fraction: float = 0.05
    """Share of the conversations that is never learned from."""
    seed: int = 0
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=20))
    log_every: int = 1
    validate_every: int = 50

    def __post_init__(self) -> None:
        for key in ("batch_size", "accumulation", "log_every", "validate_every"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must be at least 1")
        if self.sequence_length < 2:
            raise ConfigError(f"sequence_length is {self.sequence_length}; it must be at least 2")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps is {self.steps}; it must be at least 1")
        if not 0 < self.epochs < math.inf:
            raise ConfigError(f"epochs is {self.epochs}; it must be greater than 0")
        if not 0 <= self.validation_fraction <= 0.5:
            raise ConfigError(f"validation_fraction is {self.validation_fraction}; it must be between 0 and 0.5")
        if not self.data:
            raise ConfigError("there is nothing to learn from; name a file of conversations with --data")
        if self.optimiser.name == "muon":
            raise ConfigError("optimiser is 'muon'; adapters learn by adamw or adamw8bit")

    def num_steps(self, batches: TuningBatches) -> int:
        """Steps of the whole run."""
        rows = self.batch_size * self.accumulation
        return self.steps or max(1, math.ceil(self.epochs * batches.rows_per_epoch / rows))

    def write(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Pupil:
    """What a run works with."""

    model: Cortex
    attached: dict[str, torch.nn.Parameter]
    tokenizer: PreTrainedTokenizerBase
    batches: TuningBatches
    held_out: TuningBatches | None
    pool: UnitPool | None
    """That units or layers come from, where there is a budget."""


def all_targets(shape: PragnosiaConfig) -> tuple[str, ...]:
    """Whatever of a model can be adapted: units where there are any, else what is dense."""
    kinds = set(shape.feed_forwards or ())
    sparse = "experts" in kinds and shape.experts is not None
    dense = "dense" in kinds or (shape.experts is not None and shape.experts.num_shared > 0)
    return ("attention", *(("units",) if sparse else ()), *(("dense",) if dense else ()))


def prepare(config: TuneConfig, reporter: Reporter) -> Pupil:
    """Read the conversations, plan the memory, load the model, freeze it and attach adapters. Raises UserErrors."""
    folder = Path(config.model)
    check_speaker(folder)
    shape = load_config(folder)
    if config.sequence_length > shape.max_position_embeddings:
        raise ConfigError(
            f"sequence_length is {config.sequence_length}, the model holds {shape.max_position_embeddings} tokens; "
            "shorten it"
        )
    tokenizer = load_tokenizer(folder, shape.vocab_size, shape.tokenizer_digest)
    batches, held_out = _batches(config, tokenizer, reporter)
    parameters = count_parameters(shape, config.lora)
    pool = None
    if config.memory is not None:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # of 1,024 megabytes pile up
        narrow = config.optimiser.name == "adamw8bit"
        tokens = config.batch_size * config.sequence_length
        tuning = Tuning(tokens=tokens, parameters=parameters, moment_bytes=2 + 8 / 256 if narrow else 8)
        shelf, plan = planned(folder, as_bytes(config.memory), tuning=tuning)
        reporter.note(plan.table())
        model = build(shelf, plan)[0]
        pool = pool_of(model)
    else:
        model = load_model(folder)
    sow(config.seed)
    attached = attach(model, config.lora)
    recompute(model)
    model.train()
    reporter.note(
        f"adapters: {format_count(parameters)} parameters of rank {config.lora.rank} on "
        f"{' and '.join(config.lora.targets)}, {format_bytes(4 * parameters)}"
    )
    return Pupil(model, attached, tokenizer, batches, held_out, pool)


def _batches(config: TuneConfig, tokenizer: Any, reporter: Reporter) -> tuple[TuningBatches, TuningBatches | None]:
    """Rows to learn from, and rows to be examined on."""
    examples = tokenize_conversations(read_conversations(config.data), tokenizer, learn_prompts=config.learn_prompts)
    held_out = None
    learned = examples
    if config.validation_fraction and len(examples) > 1:
        learned, held = examples.split(config.validation_fraction, config.seed)
        held_out = TuningBatches(held, config.batch_size, config.sequence_length, config.seed, config.packing)
    batches = TuningBatches(learned, config.batch_size, config.sequence_length, config.seed, config.packing)
    reporter.note(
        f"data: {len(examples)} examples, {format_count(batches.tokens)} tokens in {batches.rows_per_epoch} rows, "
        f"{format_count(batches.tokens_learned)} of them learned; "
        f"{0 if held_out is None else len(held_out.examples)} examples held out"
    )
    told = batches.stretches.told(config.sequence_length)
    if told:
        reporter.note(told)
    return batches, held_out


def open_tuning(out: Path, config: TuneConfig, *, resume: bool) -> Path | None:
    """Make the folder ready; the checkpoint to go on from, or None to begin. Raises ConfigError."""
    settings = out / SETTINGS
    try:
        held = settings.is_file()
        if out.exists() and not held and any(out.iterdir()):
            raise ConfigError(f"{out} is not empty and holds no tuning run; choose another --out")
        checkpoints = Checkpoints(out / CHECKPOINTS, config.checkpoint.keep)
        checkpoints.sweep()
        latest = checkpoints.latest()
        if held and resume:
            _check_same(out, json.loads(settings.read_text(encoding="utf-8")), config.write())
        elif latest is not None:
            raise ConfigError(
                f"{out} already holds a run, saved as {latest.name}; add --resume or choose another --out"
            )
        out.mkdir(parents=True, exist_ok=True)
        write_whole(settings, json.dumps(config.write(), indent=1, ensure_ascii=False))
    except OSError as error:
        raise ConfigError(f"cannot write the run folder {out}: {error.strerror}; choose another --out") from error
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{settings} is no JSON; choose another --out") from error
    return latest


def _check_same(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(now))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and key not in _FREE)
    if changed:
        raise ConfigError(
            f"cannot resume {out}: {', '.join(changed)} changed since the run was started; put it back (only "
            "--memory, --steps, --epochs and how often is logged and saved may change) or choose another --out"
        )
