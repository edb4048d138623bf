"""Tuning: what a run is told, and the folder it happens in."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pragnosia.data import TuningBatches
from pragnosia.errors import ConfigError, unknown_name
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.training.block_learner import BLOCKS
from pragnosia.training.checkpoint import CheckpointConfig, Checkpoints, write_whole
from pragnosia.training.optimisers import OptimiserConfig
from pragnosia.training.run_folder import CHECKPOINTS, REPORT, flat
from pragnosia.training.schedules import ScheduleConfig
from pragnosia.tuning.blocks import BlockConfig
from pragnosia.tuning.configuration import LoraConfig

METHODS = ("lora", "blocks")
SETTINGS = "tune.json"
_HOME = "begun_in"
"""The folder from which relative names of model and data lead to them."""
# What a resumed run may see differently without becoming another run.
_FREE = ("memory", "vram", "steps", "epochs", "checkpoint", "log_every", "validate_every")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """One run, completely."""

    model: str
    data: list[str]
    method: Literal["lora", "blocks"] = "lora"
    lora: LoraConfig = field(default_factory=LoraConfig)
    blocks: BlockConfig = field(default_factory=BlockConfig)
    memory: str | None = None
    """A budget for the whole process, as in 4GiB; without, the model is held in memory."""
    vram: str | None = None
    """Beside it a budget of a GPU's memory: the model computes there, and adapters learn there."""
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
            raise ConfigError("optimiser is 'muon'; tuning is by adamw or adamw8bit")
        if self.method not in METHODS:
            raise ConfigError(unknown_name("method of tuning", self.method, METHODS))

    def num_steps(self, batches: TuningBatches) -> int:
        """Steps of the whole run."""
        rows = self.batch_size * self.accumulation
        return self.steps or max(1, math.ceil(self.epochs * batches.rows_per_epoch / rows))

    def write(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def all_targets(shape: PragnosiaConfig) -> tuple[str, ...]:
    """Whatever of a model can be adapted: units where there are any, else what is dense."""
    kinds = set(shape.feed_forwards or ())
    sparse = bool(shape.sparse_layers) and shape.units is not None
    dense = "dense" in kinds or (shape.units is not None and shape.units.num_shared > 0)
    return ("attention", *(("units",) if sparse else ()), *(("dense",) if dense else ()))


def open_tuning(out: Path, config: TuneConfig, *, resume: bool) -> Path | None:
    """Make the folder ready; the checkpoint to go on from, or None to begin. Raises ConfigError."""
    settings = out / SETTINGS
    try:
        held = settings.is_file()
        if held and config.method == "blocks" and (out / REPORT).is_file():
            raise ConfigError(f"{out} holds a run that is over, and is a model; choose another --out")
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
        if latest is None:
            shutil.rmtree(out / BLOCKS, ignore_errors=True)  # of a run that never came to a checkpoint
        out.mkdir(parents=True, exist_ok=True)
        settled = {**config.write(), _HOME: str(Path.cwd())}
        write_whole(settings, json.dumps(settled, indent=1, ensure_ascii=False))
    except OSError as error:
        raise ConfigError(f"cannot write the run folder {out}: {error.strerror}; choose another --out") from error
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{settings} is no JSON; choose another --out") from error
    return latest


def _leads_to(values: Mapping[str, Any], home: Path) -> list[Path]:
    """Where the names of model and data lead from a folder."""
    return [(home / name).resolve() for name in (values["model"], *values["data"])]


def _check_same(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(now))
    before = {"method": "lora", "blocks": now["blocks"], **before}  # as older runs were
    home = Path(before.pop(_HOME, "."))
    if _leads_to(before, home) == _leads_to(now, Path()):  # by whatever way they are named
        before |= {key: now[key] for key in ("model", "data")}
    old, new = dict(flat(before)), dict(flat(now))
    different = {key for key in old | new if old.get(key) != new.get(key)}
    changed = sorted(key for key in different if key.partition(".")[0] not in _FREE)
    if changed:
        raise ConfigError(
            f"cannot resume {out}: {', '.join(changed)} changed since the run was started; put it back (only "
            "--memory, --vram, --steps, --epochs and how often is logged and saved may change) or choose another --out"
        )
