"""`pack --calibrate`: what it says, what it refuses, and that it goes on after a kill."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pragnosia import kernels
from pragnosia.apps.packing import size_rows
from pragnosia.quantisation.packing import PackReport, _Work

Run = Callable[..., Any]
pytestmark = pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")


def test_it_says_what_it_read(run: Run, model: Path, story: Path, tmp_path: Path) -> None:
    command = ("pack", model, tmp_path / "out", "--format", "int3", "--calibrate", story, "--calibrate-tokens", 200)
    values = run(*command, "--data", story, "--memory", "8GiB", "--json").values
    assert values["calibration"]["tokens"] == 200
    assert values["not_carried"] == [], "the energy of the source was not calibrated"
    assert values["kl_divergence"] >= 0
    assert run("generate", tmp_path / "out", "Once", "--max-new-tokens", 3, "--json").values["tokens"] == 3
    plain = run("pack", model, tmp_path / "plain", "--format", "int3", "--json").values
    assert plain["kl_divergence"] > 0, "without --data on a little text of our own"
    assert plain["text_bytes"] == 4096
    assert plain["text_tokens"] > plain["kl_tokens"] == 512
    assert plain["num_bytes"] == values["num_bytes"]
    ours, theirs = ((tmp_path / name / "units.bin").read_bytes() for name in ("out", "plain"))
    assert ours != theirs


def test_a_loss_that_cannot_be_measured_is_told(run: Run, model: Path, story: Path, tmp_path: Path) -> None:
    mute = Path(shutil.copytree(model, tmp_path / "mute"))
    (mute / "tokenizer.json").unlink()
    done = run("pack", mute, tmp_path / "out")
    assert "quality          not measured: " in done.out
    assert "holds no tokenizer.json" in done.out
    done = run("pack", model, tmp_path / "quick", "--no-quality")
    assert "perplexity" not in done.out
    assert "not measured" not in done.out
    run("pack", model, tmp_path / "odd", "--no-quality", "--data", story).refused("leave one of them out")


def test_another_text_does_not_go_on(
    run: Run, model: Path, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> NoReturn:
        raise OSError(28, "No space left on device")

    other = tmp_path / "other.txt"
    other.write_text("Another text altogether. " * 50, "utf-8")
    command = ("pack", model, tmp_path / "out", "--calibrate-tokens", 100, "--calibrate")
    with monkeypatch.context() as patch:
        patch.setattr(_Work, "append", full)
        run(*command, story).refused("No space left on device; what is done stays")
    run(*command, other).refused("was begun from another model, format or calibration")
    assert run(*command, story, "--json").values["resumed"]
    assert run("pack", model, tmp_path / "again", *command[3:], story, "--json").code == 0
    for file in ("units.bin", "resident.bin"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_ctrl_c_says_that_the_same_command_goes_on(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    command = ("pack", model, tmp_path / "out", "--no-quality")
    for _ in range(2):  # resumed, too
        with monkeypatch.context() as patch:
            patch.setattr(_Work, "append", stopped)
            done = run(*command)
        assert done.code == 130
        assert done.err.splitlines() == [
            "pragnosia: interrupted; what is packed stays in out.partial, and the same command goes on from there"
        ]
    assert run(*command, "--json").values["resumed"]
    with monkeypatch.context() as patch:
        patch.setattr("pragnosia.apps.packing._opened", stopped)
        done = run("pack", model, tmp_path / "other")
    assert done.code == 130
    assert "is packed and whole" in done.err
    assert (tmp_path / "other" / "packed.json").is_file()


def test_room_between_small_units_is_told() -> None:
    report = PackReport("out", "bf16-2:4", 8192 * 64, 1 << 20, 9.0, False, padding_bytes=3072 * 64)
    assert size_rows(report)[-1] == (
        "padding", "192 KiB of it (38%) between units: each begins on a page of 4 KiB, to be one read"
    )  # fmt: skip
    assert len(size_rows(replace(report, padding_bytes=100))) == 2


def test_what_cannot_be(run: Run, at_once: Run, model: Path, story: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    at_once("pack", model, out, "--memory", "1GiB").refused("--memory is for --calibrate and --data")
    at_once("pack", model, out, "--calibrate", story, "--memory", "much").refused("--memory")
    at_once("pack", model, out, "--calibrate", story, "--calibrate-tokens", "0").refused("--calibrate-tokens")
    mute = Path(shutil.copytree(model, tmp_path / "mute"))
    (mute / "tokenizer.json").unlink()
    at_once("pack", mute, out, "--calibrate", story).refused("holds no tokenizer.json")
    run("pack", model, out, "--calibrate", story, "--format", "int8").refused("--calibrate changes nothing in int8")
    run("pack", model, out, "--calibrate", tmp_path / "none.txt").refused("none.txt")
    run("pack", model, out, "--calibrate", story, "--memory", "1MiB").refused("are too little")
    assert not out.exists()
    assert not (tmp_path / "out.partial").exists()
