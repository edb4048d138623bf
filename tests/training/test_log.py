"""The log: whole lines, and no memory of what a resumed run has not done."""

from __future__ import annotations

from pathlib import Path

from pragnosia.training.log import RunLog, read_log


def test_a_resumed_log_forgets_later_steps_and_torn_lines(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as log:
        for step in range(1, 6):
            log.write({"step": step, "loss": 1 / 3})
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text() + '{"step": 6, "lo')
    assert [row["step"] for row in read_log(path)] == [1, 2, 3, 4, 5]
    with RunLog(tmp_path, tensorboard=False, after=3) as log:
        log.write({"step": 4, "loss": 0.25})
    assert [(row["step"], row["loss"]) for row in read_log(path)] == [(1, 1 / 3), (2, 1 / 3), (3, 1 / 3), (4, 0.25)]


def test_tensorboard_sees_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, tensorboard=True) as log:
        log.write({"step": 1, "loss": 2.0, "sequence_length": 8})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "sequence_length"}
    assert events.Scalars("loss")[0].value == 2.0


def test_no_log_is_an_empty_log(tmp_path: Path) -> None:
    assert read_log(tmp_path / "log.jsonl") == []
