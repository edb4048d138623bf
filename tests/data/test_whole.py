from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

from pragnosia.data.whole import whole_folder
from pragnosia.errors import DataError


def test_appears_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with whole_folder(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def interrupted() -> None:
        with whole_folder(target) as partial:
            (partial / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_keeps_the_other_files(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_text("old")
    (target / "b").write_text("kept")
    with whole_folder(target) as partial:
        (partial / "a").write_text("new")
    assert {p.name: p.read_text() for p in target.iterdir()} == {"a": "new", "b": "kept"}


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match="in the way"), whole_folder(tmp_path / "out"):
        pass


def test_disk_full(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No space left"), whole_folder(tmp_path / "out"):
        raise OSError(28, os.strerror(28))


def test_sweeps_what_killed_processes_left(tmp_path: Path) -> None:
    dead = tmp_path / f".out.{platform.node()}-4194305.partial"  # above the largest pid of Linux
    other = tmp_path / ".out.another-machine-7.partial"
    dead.mkdir()
    other.mkdir()
    with whole_folder(tmp_path / "out"):
        pass
    assert not dead.exists()
    assert other.exists()
    shutil.rmtree(other)
