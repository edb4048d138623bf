"""The loop: it learns, it leaves a model that loads, it stops cleanly, and it goes on as if it had never stopped."""

from __future__ import annotations

import errno
import json
import math
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pragnosia.data import train_tokenizer, vocabulary_digest
from pragnosia.errors import BudgetError, ConfigError, DataError, TrainingError
from pragnosia.learning import Lesson
from pragnosia.learning.backprop import Backprop
from pragnosia.training.log import read_log
from pragnosia.training.progress import Record, Silent
from pragnosia.training.snapshot import Snapshot
from pragnosia.training.trainer import TrainReport, train

Configure = Callable[..., dict[str, Any]]


def run(config: dict[str, Any], out: Path, **options: Any) -> TrainReport:
    return train(config, out=out, reporter=Silent(), **options)


def history(out: Path) -> list[tuple[int, float, float, float | None]]:
    """What must not depend on interruptions; times may."""
    return [
        (row["step"], row["loss"], row["gradient_norm"], row.get("validation_loss"))
        for row in read_log(out / "log.jsonl")
    ]


def test_a_run_learns_and_leaves_a_model(configure: Configure, tmp_path: Path) -> None:
    out = tmp_path / "run"
    report = run(configure(steps=60, logging={"tensorboard": True, "curves": True, "every": 5}), out)
    records = read_log(out / "log.jsonl")
    assert records[-1]["validation_loss"] < 0.5 * records[0]["loss"]
    assert report.steps == 60
    assert report.tokens == 60 * 4 * 16
    assert report.bits_per_byte == records[-1]["validation_bits_per_byte"]
    assert json.loads((out / "report.json").read_text())["out"] == str(out)
    assert (out / "curves.png").stat().st_size > 10_000
    assert list((out / "tensorboard").iterdir())
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step-00000055", "step-00000060"]

    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    rows = tokenizer("The old cat of Rome sees stars.\n", return_tensors="pt")["input_ids"]
    assert model(input_ids=rows, labels=rows).loss < 3
    assert model.config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.gpu
def test_a_run_on_a_gpu_learns_and_resumes(configure: Configure, tmp_path: Path) -> None:
    config = configure(steps=20, precision="bf16", device="cuda", optimiser={"name": "muon"})
    run(config, tmp_path / "run")
    run(config | {"steps": 30}, tmp_path / "run", resume=True)
    losses = [row["loss"] for row in read_log(tmp_path / "run" / "log.jsonl")]
    assert losses[-1] < 0.7 * losses[0]


def test_the_record_says_what_the_issue_asks(configure: Configure, tmp_path: Path) -> None:
    run(configure(steps=2), tmp_path / "run")
    record = read_log(tmp_path / "run" / "log.jsonl")[-1]
    assert {"loss", "bits_per_byte", "learning_rate", "gradient_norm", "tokens_per_second", "units_awake",
            "load_entropy", "dead_units", "sequence_length", "validation_bits_per_byte"} <= set(record)  # fmt: skip
    assert record["units_awake"] == 2
    assert record["units"] == 4


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"optimiser": {"name": "muon"}},
        {"ema": {"decay": 0.9, "every": 2}},
        {"schedule": {"first_length": 4, "length_warmup_steps": 6}, "batch": {"accumulation": 2}},
        {"gradient_checkpointing": True, "precision": "bf16"},
        {"model": {"experts": None, "feed_forward": {"width": 16}}},
        {"curriculum": {"by": "frequency", "steps": 10, "start": 0.2}},
    ],
    ids=["plain", "muon", "ema", "lengths", "bf16", "dense", "curriculum"],
)
def test_a_resumed_run_is_the_uninterrupted_run(configure: Configure, tmp_path: Path, change: dict[str, Any]) -> None:
    config = configure(**change)
    run(config, tmp_path / "whole")

    class Impatient(Silent):  # type: ignore[misc]
        def advance(self, step: int, record: Record | None) -> None:
            if step == 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, out=tmp_path / "broken", reporter=Impatient())
    assert len(history(tmp_path / "broken")) == 8
    run(config, tmp_path / "broken", resume=True)
    assert history(tmp_path / "broken") == history(tmp_path / "whole")
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "broken"))
    for (name, mine), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_finished_run_can_be_extended(configure: Configure, tmp_path: Path) -> None:
    config = configure(schedule={"name": "constant"}, logging={"validate_every": 100})
    run(config, tmp_path / "short")
    report = run(config | {"steps": 20}, tmp_path / "short", resume=True)
    run(config | {"steps": 20}, tmp_path / "long")
    assert report.steps == 20
    assert [row[:3] for row in history(tmp_path / "short")] == [row[:3] for row in history(tmp_path / "long")]


def test_resuming_a_finished_run_says_what_it_came_to(configure: Configure, tmp_path: Path) -> None:
    config = configure(logging={"curves": True})
    first = run(config, tmp_path / "run")
    drawn = (tmp_path / "run" / "curves.png").read_bytes()
    (tmp_path / "run" / "curves.png").unlink()
    again = run(config, tmp_path / "run", resume=True)
    assert again == first
    assert (tmp_path / "run" / "curves.png").read_bytes() == drawn


def test_a_dense_run_has_curves_too(configure: Configure, tmp_path: Path) -> None:
    dense = {"experts": None, "feed_forward": {"width": 8}}
    run(configure(steps=3, model=dense, logging={"curves": True}), tmp_path / "run")
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000
    assert "units_awake" not in read_log(tmp_path / "run" / "log.jsonl")[-1]


class Notes(Silent):  # type: ignore[misc]
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def test_resuming_nothing_begins_and_says_so(configure: Configure, tmp_path: Path) -> None:
    said = Notes()
    assert train(configure(steps=1), out=tmp_path / "run", resume=True, reporter=said).steps == 1
    assert said.lines[0] == f"nothing to resume: {tmp_path / 'run'} holds no checkpoint; beginning at step 0"
    again = Notes()
    train(configure(steps=1), out=tmp_path / "run", resume=True, reporter=again)
    assert not any("nothing to resume" in line for line in again.lines)


def test_the_average_can_be_the_model(configure: Configure, tmp_path: Path) -> None:
    run(configure(ema={"decay": 0.9}), tmp_path / "beside")
    run(configure(ema={"decay": 0.9, "save": "model"}), tmp_path / "model")
    beside = AutoModelForCausalLM.from_pretrained(tmp_path / "beside" / "ema")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "beside")
    assert torch.equal(beside.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(beside.lm_head.weight, plain.lm_head.weight)
    rows = [read_log(tmp_path / name / "log.jsonl")[-1] for name in ("beside", "model")]
    assert rows[0]["average_bits_per_byte"] == rows[1]["validation_bits_per_byte"]


def test_accumulation_is_a_larger_batch(configure: Configure, tmp_path: Path) -> None:
    run(configure(batch={"batch_size": 4}), tmp_path / "one")
    run(configure(batch={"batch_size": 2, "accumulation": 2}), tmp_path / "two")
    for one, two in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert one[1] == pytest.approx(two[1], rel=1e-3)


def test_not_a_number_stops_the_run_and_keeps_the_last_checkpoint(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, calls = Backprop.learn, []

    def poisoned(self: Backprop, *arguments: Any) -> Lesson:
        calls.append(1)
        lesson = learn(self, *arguments)
        return replace(lesson, loss=torch.tensor(math.nan)) if len(calls) == 8 else lesson

    monkeypatch.setattr(Backprop, "learn", poisoned)
    with pytest.raises(TrainingError, match=r"loss is nan at step 8; the last good checkpoint is .*step-00000005") as c:
        run(configure(), tmp_path / "run")
    assert "\n" not in str(c.value)
    run(configure(), tmp_path / "run", resume=True)


def test_not_a_number_before_the_first_checkpoint_says_what_there_is(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Backprop.learn
    with monkeypatch.context() as patch:
        patch.setattr(Backprop, "learn", lambda *given: replace(learn(*given), loss=torch.tensor(math.nan)))
        with pytest.raises(TrainingError, match=r"no checkpoint yet, .*run holds only .*log\.jsonl, .*train\.yaml;"):
            run(configure(), tmp_path / "run")
    assert run(configure(), tmp_path / "run").steps == 12, "the folder is free for a better start"


@pytest.mark.parametrize("resume", [False, True])
def test_a_failed_start_leaves_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pragnosia.model.modeling.PragnosiaForCausalLM", fails)
    with pytest.raises(OSError, match="No space"):
        run(configure(), tmp_path / "run", resume=resume)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Snapshot.write

    def full(self: Snapshot, folder: Path) -> None:
        write(self, folder)
        if self.course.step == 10:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Snapshot, "write", full)
        with pytest.raises(TrainingError, match=r"step 10: No space left on device; .*step-00000005") as caught:
            run(configure(), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000005"]
    run(configure(), tmp_path / "run", resume=True)
    run(configure(), tmp_path / "whole")
    assert history(tmp_path / "run") == history(tmp_path / "whole")


def test_a_disk_that_really_is_full(configure: Configure, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Filling(Silent):  # type: ignore[misc]
        def advance(self, step: int, record: Record | None) -> None:
            if step == 7:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    try:
        with pytest.raises(TrainingError, match=r"cannot write .* at step 10: .*step-00000005") as caught:
            train(configure(), out=tmp_path / "run", reporter=Filling())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000005"]


def test_a_model_beyond_memory_is_refused_before_it_is_built(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"training needs about .* are free"):
        run(configure() | {"model": {"preset": "450b"}}, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"optimiser": {"learning_rate": 0.5}}, r"optimiser\.learning_rate changed"),
        ({"model": {"hidden_size": 32}}, r"model\.hidden_size changed"),
        ({"seed": 1}, "seed changed"),
    ],
)
def test_another_run_cannot_be_resumed(configure: Configure, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    run(configure(steps=1), tmp_path / "run")
    with pytest.raises(ConfigError, match=says):
        run(configure(**change), tmp_path / "run", resume=True)


def test_another_tokenizer_cannot_be_resumed_with(configure: Configure, corner: Path, tmp_path: Path) -> None:
    run(configure(steps=1), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["tokenizer_digest"] == vocabulary_digest(corner / "tokenizer") is not None
    train_tokenizer([corner / "text.txt"], 280, tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"its tokenizer.json is not the run's own; copy it back from .*step-00000001"
    ):
        run(configure(steps=2), tmp_path / "run", resume=True)


def test_a_run_is_not_overwritten_by_accident(configure: Configure, tmp_path: Path) -> None:
    run(configure(steps=1), tmp_path / "run")
    with pytest.raises(ConfigError, match="already holds a run"):
        run(configure(steps=1), tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    with pytest.raises(ConfigError, match="not empty"):
        run(configure(steps=1), tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"cannot write the run folder .*thesis\.txt"):
        run(configure(steps=1), tmp_path / "mine" / "thesis.txt")


def test_what_can_be_known_is_said_before_a_tokenizer_is_trained(configure: Configure, tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("")
    binary.write_bytes(b"abc\x00" * 50)
    trained = configure() | {"tokenizer": {"vocab_size": 300}}
    for change, error, says in (
        ({"data": {"sources": [str(empty)]}}, DataError, "empty.txt is empty"),
        ({"data": {"sources": [str(binary)]}}, DataError, "binary.txt is not text"),
        ({"model": {"preset": "450b"}}, BudgetError, "training needs about"),
        ({"tokenizer": {"vocab_size": 100}}, DataError, "vocab_size is 100"),
        ({"rule": "bakprop"}, ConfigError, "backprop"),
    ):
        said = Notes()
        with pytest.raises(error, match=says) as caught:
            train(trained | change, out=tmp_path / "run", reporter=said)
        assert "\n" not in str(caught.value)
        assert said.lines == []
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": {"preset": "nanno"}}, ConfigError, "Did you mean 'nano'"),
        ({"model": {"hiden_size": 3}}, ConfigError, "hidden_size"),
        ({"model": {"hidden_size": "wide"}}, ConfigError, "hidden_size"),
        ({"model": {"vocab_size": 17}}, DataError, "the model's vocabulary has 17"),
        ({"batch": {"sequence_length": 64}}, ConfigError, "sequence_length is 64"),
        ({"data": {"sources": ["nowhere.txt"]}}, DataError, "nowhere.txt"),
        ({"tokenizer": {"path": "nowhere"}}, DataError, "nowhere"),
        ({"rule": "bakprop"}, ConfigError, "backprop"),
        ({"device": "cuda:99"}, ConfigError, "cuda:99"),
        ({"device": "abacus"}, ConfigError, "abacus"),
    ],
)
def test_bad_input_is_one_line(
    configure: Configure, tmp_path: Path, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        run(configure(**change), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists(), "nothing half-written"
