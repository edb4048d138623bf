"""Tuning: the loss falls, the model stays as it was, PEFT's files come out, and kill -9 costs only time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_talk import small_model, write_chat

from pragnosia import Pragnosia, kernels
from pragnosia.errors import BudgetError, CheckpointError, ConfigError, DataError, TrainingError
from pragnosia.training.checkpoint import CheckpointConfig
from pragnosia.training.log import LOG, read_log
from pragnosia.training.optimisers import OptimiserConfig
from pragnosia.training.progress import Silent
from pragnosia.training.tuner import tune
from pragnosia.training.tuning import TuneConfig, open_tuning
from pragnosia.tuning.configuration import LoraConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corner: Path) -> Path:
    """A sparse model with the corner's tokenizer."""
    return small_model(tmp_path_factory.mktemp("models") / "sparse", corner)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat(tmp_path_factory.mktemp("chats") / "chat.jsonl")


@pytest.fixture
def configure(folder: Path, chat: Path) -> Callable[..., TuneConfig]:
    def configured(**changes: Any) -> TuneConfig:
        base = TuneConfig(
            model=str(folder),
            data=[str(chat)],
            lora=LoraConfig(rank=4, targets=("attention", "units")),
            batch_size=2,
            sequence_length=64,
            steps=12,
            validation_fraction=0.0,
            optimiser=OptimiserConfig(learning_rate=0.02, weight_decay=0.0),
        )
        return replace(base, **changes)

    return configured


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter_model.safetensors")


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_the_loss_falls_and_the_model_stays(
    configure: Callable[..., TuneConfig], folder: Path, tmp_path: Path, name: Any
) -> None:
    before = (folder / "model.safetensors").read_bytes()
    optimiser = OptimiserConfig(name=name, learning_rate=0.02, weight_decay=0.0)
    report = tune(configure(optimiser=optimiser, steps=30), out=tmp_path / "out", reporter=Silent())
    log = read_log(tmp_path / "out" / LOG)
    assert log[-1]["loss"] < 0.75 * log[0]["loss"]
    assert report.loss == log[-1]["loss"]
    assert (folder / "model.safetensors").read_bytes() == before
    tuned = Pragnosia.from_pretrained(folder, adapter=tmp_path / "out")
    plain = Pragnosia.from_pretrained(folder)
    ids = torch.tensor([plain.encode("User: Who slept?\nAssistant: The old cat slept.")])
    with torch.inference_mode():
        losses = [float(speaker.model(ids, labels=ids, use_cache=False).loss) for speaker in (plain, tuned)]
    assert losses[1] < losses[0]


def test_held_out_conversations(configure: Callable[..., TuneConfig], tmp_path: Path) -> None:
    report = tune(configure(validation_fraction=0.3, steps=20), out=tmp_path / "out", reporter=Silent())
    assert report.validation_loss is not None
    assert report.validation_loss_before is not None
    assert report.validation_loss < report.validation_loss_before


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_within_a_budget_the_same_is_learned(configure: Callable[..., TuneConfig], tmp_path: Path) -> None:
    for name, memory in (("here", None), ("there", "2GiB")):
        report = tune(configure(memory=memory), out=tmp_path / name, reporter=Silent())
        assert (report.bytes_read > 0) == (memory is not None)
        assert report.seconds_waiting == 0 or memory is not None  # units this small may be here before they are missed
    here, there = adapter(tmp_path / "here"), adapter(tmp_path / "there")
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) for key in here)
    with pytest.raises(BudgetError, match=r"adapters, slopes and moments .* give --memory"):
        tune(configure(memory="30MiB"), out=tmp_path / "little", reporter=Silent())


def test_batches_of_any_size_weigh_every_learned_token_the_same(
    configure: Callable[..., TuneConfig], tmp_path: Path
) -> None:
    together = tune(configure(batch_size=4, steps=3), out=tmp_path / "together", reporter=Silent())
    apart = tune(configure(batch_size=1, accumulation=4, steps=3), out=tmp_path / "apart", reporter=Silent())
    assert together.tokens == apart.tokens
    assert abs(together.loss - apart.loss) < 1e-4


def killed(config: TuneConfig, out: Path, moment: Callable[[], bool]) -> None:
    """Run in another process and kill -9 it as soon as `moment()`."""
    script = (
        "import sys, json, torch; torch.set_num_threads(1)\n"
        "from pragnosia.training.tuner import tune; from pragnosia.training.tuning import TuneConfig\n"
        "from pragnosia.training.progress import Silent; from pragnosia.tuning.configuration import LoraConfig\n"
        "from pragnosia.training.optimisers import OptimiserConfig\n"
        "from pragnosia.training.checkpoint import CheckpointConfig\n"
        "given = json.loads(sys.argv[1]); given.pop('schedule')\n"
        "given['lora'] = LoraConfig(**given['lora']); given['optimiser'] = OptimiserConfig(**given['optimiser'])\n"
        "given['checkpoint'] = CheckpointConfig(**given['checkpoint'])\n"
        "tune(TuneConfig(**given), out=sys.argv[2], resume=True, reporter=Silent())\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, json.dumps(config.write()), str(out)])
    try:
        while not moment():
            assert child.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_kill_9_and_resume_learns_what_an_unbroken_run_learns(
    configure: Callable[..., TuneConfig], tmp_path: Path
) -> None:
    config = configure(steps=60, checkpoint=CheckpointConfig(every=4))
    config = replace(config, optimiser=replace(config.optimiser, name="adamw8bit"))
    out, log = tmp_path / "killed", tmp_path / "killed" / LOG
    killed(config, out, lambda: len(read_log(log)) >= 10)
    assert not (out / "adapter_model.safetensors").exists()
    tune(config, out=out, resume=True, reporter=Silent())
    tune(config, out=tmp_path / "whole", reporter=Silent())
    assert [line["loss"] for line in read_log(log)] == [line["loss"] for line in read_log(tmp_path / "whole" / LOG)]
    first, second = adapter(out), adapter(tmp_path / "whole")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_cannot_be_tuned(configure: Callable[..., TuneConfig], folder: Path, tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"reporter": Silent()}
    with pytest.raises(ConfigError, match="the model holds 128 tokens"):
        tune(configure(sequence_length=256), out=tmp_path / "a", **quiet)
    with pytest.raises(ConfigError, match="no dense to adapt"):
        tune(configure(lora=LoraConfig(targets=("dense",))), out=tmp_path / "b", **quiet)
    with pytest.raises(DataError, match="no such file"):
        tune(configure(data=["nowhere.jsonl"]), out=tmp_path / "c", **quiet)
    assert not any((tmp_path / name).exists() for name in "abc"), "what never began leaves nothing"
    with pytest.raises(ConfigError, match="not empty and holds no tuning run"):
        tune(configure(), out=folder, **quiet)
    tune(configure(steps=2), out=tmp_path / "d", **quiet)
    with pytest.raises(ConfigError, match=r"already holds a run, saved as step-.*; add --resume"):
        tune(configure(steps=3), out=tmp_path / "d", **quiet)
    with pytest.raises(ConfigError, match=r"cannot resume .*: lora\.rank, .*seed changed since"):
        tune(configure(seed=1, lora=LoraConfig(rank=2)), out=tmp_path / "d", resume=True, **quiet)


def test_not_a_number_stops_the_run(configure: Callable[..., TuneConfig], tmp_path: Path) -> None:
    wild = OptimiserConfig(learning_rate=1e30, weight_decay=0.0, clip=None)
    with pytest.raises(TrainingError, match=r"is (nan|inf) at step \d+; .*lower --learning-rate"):
        tune(configure(optimiser=wild), out=tmp_path / "out", reporter=Silent())


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_a_file_cut_while_it_is_read(
    configure: Callable[..., TuneConfig], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was learned by then is kept, and the run goes on once the file is whole again."""
    copied = tmp_path / "model"
    copied.mkdir()
    for file in folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    weights = copied / "model.safetensors"
    whole = weights.read_bytes()
    config = configure(model=str(copied), memory="2GiB", steps=6, checkpoint=CheckpointConfig(every=2))

    class Cutting:
        """Cuts the file at step 3, and lets the pool forget."""

        def note(self, line: str) -> None: ...
        def watch(self, bytes_read: Callable[[], int]) -> None: ...
        def loading(self, done: int, total: int) -> None: ...
        def start(self, steps: int, done: int) -> None: ...
        def stop(self) -> None: ...
        def advance(self, step: int, record: Any) -> None:
            if step == 3:
                weights.write_bytes(whole[: len(whole) // 3])

    from pragnosia.kernels.pool import UnitPool

    monkeypatch.setattr(UnitPool, "bytes_for", staticmethod(lambda record, slots: 10**8 * slots))  # few slots
    with pytest.raises(CheckpointError, match=r"ends too soon; the last good checkpoint is .*step-00000002.*--resume"):
        tune(config, out=tmp_path / "out", reporter=Cutting())
    weights.write_bytes(whole)
    monkeypatch.undo()
    assert tune(config, out=tmp_path / "out", resume=True, reporter=Silent()).steps == 6


def test_a_run_goes_on_however_its_files_are_named(
    configure: Callable[..., TuneConfig], folder: Path, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = tmp_path / "out", tmp_path / "other.jsonl"
    other.write_bytes(chat.read_bytes())
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(chat.parent)
    config = configure(data=[chat.name])
    assert open_tuning(out, config, resume=False) is None
    for again in (f"./{chat.name}", str(chat), f"../{chat.parent.name}/{chat.name}"):
        open_tuning(out, replace(config, data=[again]), resume=True)
    open_tuning(out, replace(config, model=os.path.relpath(folder)), resume=True)
    monkeypatch.chdir(tmp_path / "deeper")
    open_tuning(out, replace(config, data=[os.path.relpath(chat)]), resume=True)
    with pytest.raises(ConfigError, match=r"cannot resume .*: data changed since"):
        open_tuning(out, replace(config, data=["../other.jsonl"]), resume=True)
