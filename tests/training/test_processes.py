"""One run in two processes, that grows in the middle, beside the same run in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from pragnosia.training.events import events_of
from pragnosia.training.log import read_log
from pragnosia.training.processes import here, share_gradients, share_lessons
from pragnosia.training.progress import Silent
from pragnosia.training.trainer import train

ALWAYS = {"window": 1, "gain": 0.99}


def _one_of_two(rank: int, folder: str, config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    train(config, out=Path(folder) / f"process-{rank}", reporter=Silent())
    distributed.destroy_process_group()


@pytest.mark.slow
def test_a_run_in_two_processes_grows_and_both_stay_equal(
    configure: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    plasticity = {"max_parameters": 20_000, "plateau": ALWAYS, "grow": "units", "overload": 2.0, "every": 3, "rest": 1}
    stages = [{"name": "young", "layers": 1, "steps": 3}, {"name": "adult"}]
    given = configure(steps=12, plasticity=plasticity, stages=stages, schedule={"name": "constant"})
    halves = given | {"batch": given["batch"] | {"batch_size": 2, "accumulation": 2}}
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path), halves), nprocs=2)
    one, other = (load_file(tmp_path / f"process-{rank}" / "model.safetensors") for rank in range(2))
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    logs = [read_log(tmp_path / f"process-{rank}" / "log.jsonl") for rank in range(2)]
    assert [record["loss"] for record in logs[0]] == [record["loss"] for record in logs[1]]
    train(given | {"batch": given["batch"] | {"accumulation": 2}}, out=tmp_path / "alone", reporter=Silent())
    alone = read_log(tmp_path / "alone" / "log.jsonl")
    whats = [[event.what for event in events_of(log)] for log in (*logs, alone)]
    assert whats[0] == whats[1] == whats[2]
    assert {"stage", "add_units"} <= set(whats[0]), "it grew up, and by itself"
    for key in ("tokens", "operations", "parameters"):
        assert [record[key] for record in logs[0]] == [record[key] for record in alone], key
    assert [record["loss"] for record in logs[0]] == pytest.approx([record["loss"] for record in alone], rel=1e-3)
    for name, weight in load_file(tmp_path / "alone" / "model.safetensors").items():
        torch.testing.assert_close(one[name], weight, rtol=0.05, atol=5e-3)


def test_alone_nothing_is_shared() -> None:
    assert (here().rank, here().world_size) == (0, 1)
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    share_gradients([weight])
    assert weight.grad.tolist() == [1, 1]
    assert share_lessons([]) == []
