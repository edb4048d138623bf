"""Compare: several models on the same tokens in the same order, each at its best learning rate, over seeds.

    sweep   every arm, the same multiples of its learning rate, fewer steps; on while the best is at an edge
    train   every arm at its best rate, every seed; seed by seed, so that a slow hour is shared by all arms

One arm is always dense with as many operations per token (see arms.py). A comparison that was cut short goes on
where it stopped when it is started again with the same arguments.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pragnosia.errors import ConfigError, UserError
from pragnosia.measure.energy import energy_model
from pragnosia.training.arms import Arm, read_arms, reference, with_dense
from pragnosia.training.assembly import check_plan, find_device, prepare_tokenizer
from pragnosia.training.checkpoint import CheckpointConfig, write_whole
from pragnosia.training.comparison import ArmReport, CompareReport, Spread, draw
from pragnosia.training.configuration import TokenizerConfig, TrainConfig
from pragnosia.training.log import LOG, Record, read_log
from pragnosia.training.progress import Bar, Reporter
from pragnosia.training.run_folder import CHECKPOINTS, REPORT, make_shared_folder
from pragnosia.training.trainer import train

# A best rate at the edge of the sweep moves the edge, at most so often.
_MAX_EXTENSIONS = 2


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Which multiples of its learning rate each arm tries, and for what part of the steps."""

    multiples: tuple[float, ...] = (0.5, 1.0, 2.0)
    share: float = 0.3

    def __post_init__(self) -> None:
        if not self.multiples or min(self.multiples) <= 0:
            raise ConfigError(f"the sweep's multiples are {list(self.multiples)}; give one or more above 0")
        if not 0 < self.share <= 1:
            raise ConfigError(f"the sweep's share of the steps is {self.share}; it must be above 0 and at most 1")


def compare(
    configs: Sequence[Path | str | Mapping[str, Any]],
    *,
    data: Sequence[str] | None = None,
    seeds: int = 3,
    out: Path | str = "runs/compare",
    overrides: Sequence[str] = (),
    sweep: Sweep = Sweep(),
    reporter: Reporter | None = None,
) -> CompareReport:
    """Tune, train and set side by side, all in the folder `out`. Raises UserErrors."""
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}; it must be at least 1")
    folder, reporter = Path(out), reporter or Bar()
    read = read_arms(configs, overrides)
    if data:
        read = {name: replace(arm, data=replace(arm.data, sources=list(data))) for name, arm in read.items()}
    first = next(iter(read.values()))
    prepared = {name: _prepared(config, folder) for name, config in read.items()}
    for config in read.values():
        check_plan(config, folder)
    fresh = not folder.exists()
    make_shared_folder(folder, yaml.safe_dump([arm.write() for arm in read.values()], sort_keys=False))
    try:
        tokenizer = prepare_tokenizer(first, folder, reporter)
    except UserError:
        if fresh:
            shutil.rmtree(folder)
        raise
    arms = with_dense(prepared, tokenizer)

    tuned = {arm.name: _tuned(arm, folder / "sweep", sweep, reporter) for arm in arms}
    for seed in range(seeds):
        for arm in arms:
            rate = tuned[arm.name][0]
            _run(arm, folder / arm.name / f"seed-{seed}", reporter, rate=rate, seed=first.seed + seed)
    runs = {arm.name: [read_log(folder / arm.name / f"seed-{seed}" / LOG) for seed in range(seeds)] for arm in arms}
    report = _report(arms, tuned, runs, folder)
    write_whole(folder / "compare.json", json.dumps(report.to_dict(), indent=1))
    write_whole(folder / "compare.txt", "\n".join(report.table()) + "\n")
    draw(report, runs, folder / "compare.png")
    return report


def _prepared(config: TrainConfig, folder: Path) -> TrainConfig:
    """With the tokenizer and the packed text that all arms share, and one checkpoint at the end."""
    cache = config.data.cache or str(folder / "data")
    if config.data.validation_fraction == 0:
        raise ConfigError("data.validation_fraction is 0; a comparison needs held-out text")
    return replace(
        config,
        tokenizer=TokenizerConfig(path=str(folder)),
        data=replace(config.data, cache=cache),
        checkpoint=CheckpointConfig(every=max(config.num_steps, config.checkpoint.every), keep=1),
        logging=replace(config.logging, tensorboard=False, curves=False),
    )


def _tuned(arm: Arm, folder: Path, sweep: Sweep, reporter: Reporter) -> tuple[float, dict[str, float]]:
    """The learning rate with the lowest held-out bits per byte, and what each rate gave."""
    multiples = sorted(sweep.multiples)
    steps = max(1, round(arm.config.num_steps * sweep.share))
    peak = arm.config.optimiser.learning_rate
    found: dict[float, float] = {}
    if len(multiples) == 1:
        return peak * multiples[0], {}
    for _ in range(1 + _MAX_EXTENSIONS):
        for multiple in multiples:
            if multiple not in found:
                out = folder / f"{arm.name}-{multiple:g}"
                found[multiple] = _run(arm, out, reporter, rate=peak * multiple, steps=steps)
        best = min(found, key=lambda multiple: found[multiple])
        if best not in (multiples[0], multiples[-1]):
            break
        multiples = [multiples[0] / 2, *multiples] if best == multiples[0] else [*multiples, multiples[-1] * 2]
    return peak * best, {f"{peak * multiple:.3g}": value for multiple, value in sorted(found.items())}


def _run(
    arm: Arm, out: Path, reporter: Reporter, *, rate: float, seed: int | None = None, steps: int | None = None
) -> float:
    """Train one model, or find it trained; its held-out bits per byte."""
    config = replace(arm.config, optimiser=replace(arm.config.optimiser, learning_rate=rate))
    if seed is not None:
        config = replace(config, seed=seed)
    if steps is not None:
        config = replace(config, steps=steps, tokens=None)
    if (out / REPORT).is_file():
        return float(json.loads((out / REPORT).read_text(encoding="utf-8"))["bits_per_byte"])
    reporter.note(f"{arm.name}: {config.num_steps} steps at {rate:.3g}, seed {config.seed}")
    report = train(config, out=out, resume=out.exists(), reporter=reporter)
    shutil.rmtree(out / CHECKPOINTS)  # many runs, and each checkpoint is three times its model
    return report.bits_per_byte


def _report(
    arms: Sequence[Arm],
    tuned: Mapping[str, tuple[float, dict[str, float]]],
    runs: Mapping[str, Sequence[Sequence[Record]]],
    folder: Path,
) -> CompareReport:
    first = arms[0].config
    joules = energy_model(device=find_device(first.device).type)
    ends = {name: [_last(records) for records in each] for name, each in runs.items()}
    dense = reference(arms).name
    reports = []
    for arm in arms:
        mine, theirs = ([end["validation_bits_per_byte"] for end in ends[name]] for name in (arm.name, dense))
        cost = arm.account
        energy = joules.estimate(cost.operations_per_token, cost.bytes_per_token, cost.precision)
        reports.append(
            ArmReport(
                name=arm.name,
                dense=arm.dense,
                total_parameters=cost.total_parameters,
                active_parameters=cost.active_parameters,
                operations_per_token=cost.operations_per_token,
                joules_per_token=energy.joules,
                learning_rate=tuned[arm.name][0],
                sweep=tuned[arm.name][1],
                loss=Spread.of([end["validation_loss"] for end in ends[arm.name]]),
                bits_per_byte=Spread.of(mine),
                against_dense=None
                if arm.name == dense
                else Spread.of([a - b for a, b in zip(mine, theirs, strict=True)]),
                tokens_per_second=Spread.of([_speed(records) for records in runs[arm.name]]),
            )
        )
    tokens = first.num_steps * first.batch.tokens
    return CompareReport(
        out=str(folder), seeds=len(ends[dense]), steps=first.num_steps, tokens=tokens,
        energy_model=joules.name, arms=reports,
    )  # fmt: skip


def _last(records: Sequence[Record]) -> Record:
    """The last line with a validation."""
    return next(record for record in reversed(records) if "validation_loss" in record)


def _speed(records: Sequence[Record]) -> float:
    """Tokens per second over a run: the median of its log's lines, which a pause in the middle does not move."""
    speeds = sorted(record["tokens_per_second"] for record in records)
    return float(speeds[len(speeds) // 2])
