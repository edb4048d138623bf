"""Task suites: a model through lm-evaluation-harness on local task files, offline.

Task files are what `measure.harness_tasks.write_task` writes, or any lm_eval YAML in `task_dir`; lm_eval's own tasks,
which it would fetch, are not offered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pragnosia.errors import ConfigError, DataError, UserError, unknown_name
from pragnosia.inference.dial import Wish
from pragnosia.inference.speaker import Pragnosia
from pragnosia.model.setting import Setting


def run_tasks(
    model: Pragnosia | Path | str,
    tasks: Sequence[str],
    task_dir: Path | str,
    *,
    limit: int | None = None,
    energy: Wish = 1.0,
    setting: Setting | None = None,
) -> dict[str, dict[str, Any]]:
    """Metrics of each task: `{"blimp": {"acc": 0.7, "acc_stderr": 0.02, "samples": 400, "groups": {…}}}`.

    `model` is a directory or loaded, `limit` the number of questions of each task; `groups` is accuracy by the
    questions' column `group`, where they have one.

    Raises:
        UserError: lm_eval is not installed. DataError: no such task or folder. CheckpointError: no such model.
        ConfigError: an impossible limit.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be 1 or more")
    try:
        from lm_eval import evaluator
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"lm_eval cannot be imported ({error}); install it: pip install 'pragnosia[eval]'") from error
    from pragnosia.measure.harness_model import PragnosiaLM

    folder = Path(task_dir)
    if not folder.is_dir():
        raise DataError(f"no folder of tasks at {folder}; make one with measure.harness_tasks.write_task")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    for task in tasks or [""]:
        if task not in manager.all_tasks:
            raise DataError(unknown_name("task", task, manager.all_tasks))
    speaker = model if isinstance(model, Pragnosia) else Pragnosia.from_pretrained(model, store=False)
    results = evaluator.simple_evaluate(
        PragnosiaLM(speaker, setting=speaker.turned(energy, setting)),
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        bootstrap_iters=1000,
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
    )
    return {name: _metrics(values, results["samples"].get(name, ())) for name, values in results["results"].items()}


def _metrics(values: dict[str, Any], samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """lm_eval names a metric `acc,none` after its filter; the usual filter goes without saying."""
    metrics: dict[str, Any] = {
        key.removesuffix(",none"): value for key, value in values.items() if "," in key and not isinstance(value, str)
    }
    metrics["samples"] = len(samples)
    groups: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        if sample["doc"].get("group") and "acc" in sample:
            groups[sample["doc"]["group"]].append(sample["acc"])
    if groups:
        metrics["groups"] = {group: fmean(hits) for group, hits in sorted(groups.items())}
    return metrics
