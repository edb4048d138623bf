"""Checkpoints: whole or not there, and kill -9 at any moment costs only time."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pragnosia.training.checkpoint import Checkpoints, is_whole, random_state, restore_random, write_whole
from pragnosia.training.log import read_log
from pragnosia.training.progress import Silent
from pragnosia.training.trainer import train

Configure = Callable[..., dict[str, Any]]


def fill(folder: Path) -> None:
    (folder / "a.txt").write_text("alpha")
    (folder / "b.txt").write_text("beta")


def test_the_oldest_go_and_the_latest_is_found(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 15):
        checkpoints.save(step, fill)
    assert [path.name for path in checkpoints.complete()] == ["step-00000010", "step-00000015"]
    assert checkpoints.latest() == tmp_path / "step-00000015"


def test_a_failing_save_leaves_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, fill)

    def fail(folder: Path) -> None:
        fill(folder)
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        checkpoints.save(2, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest", "no manifest"])
def test_a_damaged_checkpoint_does_not_count(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    good, bad = checkpoints.save(1, fill), checkpoints.save(2, fill)
    match damage:
        case "truncate":
            (bad / "b.txt").write_text("be")
        case "remove":
            (bad / "a.txt").unlink()
        case "manifest":
            (bad / "manifest.json").write_text("{")
        case _:
            (bad / "manifest.json").unlink()
    assert not is_whole(bad)
    assert checkpoints.latest() == good


def test_random_generators_go_out_and_in() -> None:
    tensors, numbers = random_state()
    numbers = json.loads(json.dumps(numbers))
    first = random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002
    restore_random(tensors, numbers)
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == first  # noqa: NPY002


def test_a_small_file_is_written_whole_or_not(tmp_path: Path) -> None:
    write_whole(tmp_path / "x", "one")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "x", "\udc80")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "one")]


CHILD = """
import json, sys, torch
torch.set_num_threads(1)
from pragnosia.training.progress import Silent
from pragnosia.training.trainer import train
train(json.loads(sys.argv[1]), out=sys.argv[2], resume=True, reporter=Silent())
"""


def killed(config: dict[str, Any], out: Path, moment: Callable[[], bool]) -> None:
    """Run in another process and kill -9 it as soon as `moment()`."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(config), str(out)])
    deadline = time.monotonic() + 60
    try:
        while not moment():
            assert child.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.0005)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_kill_9_at_any_moment_and_resume_gives_the_same_losses(configure: Configure, tmp_path: Path) -> None:
    config = configure(steps=60, checkpoint={"every": 4}, ema={"decay": 0.9})
    out, log = tmp_path / "killed", tmp_path / "killed" / "log.jsonl"
    killed(config, out, lambda: len(read_log(log)) >= 15)  # between checkpoints, most likely
    done = len(read_log(log))
    saved = [path.name for path in sorted((out / "checkpoints").glob("step-*"))]
    assert saved
    killed(
        config,
        out,
        lambda: len(read_log(log)) > done and any((out / "checkpoints").glob(".unfinished-*")),  # within a save
    )
    train(config, out=out, resume=True, reporter=Silent())
    train(config, out=tmp_path / "whole", reporter=Silent())
    rows = [
        [(row["step"], row["loss"], row["gradient_norm"], row.get("validation_loss")) for row in read_log(path)]
        for path in (log, tmp_path / "whole" / "log.jsonl")
    ]
    assert rows[0] == rows[1]
    assert not list((out / "checkpoints").glob(".unfinished-*"))
