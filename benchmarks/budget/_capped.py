"""A command within a hard cap of memory, page cache counted: a control group, version 1 or 2, and its peak."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT_1, ROOT_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache, so that every engine begins cold."""
    os.sync()
    for file in folder.rglob("*") if folder.is_dir() else [folder]:
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def capped(
    command: Sequence[str], limit: int, *, timeout: float = 300, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run a command whose last line of stdout is JSON; adds `peak_bytes`, `capped` and `seconds`.

    Where no control group can be made (it takes root) the command runs free, and `capped` says so.
    """
    group, first = _group(limit)
    started = time.perf_counter()
    process = subprocess.Popen(
        list(command),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
        preexec_fn=(lambda: _join(group)) if group else None,  # noqa: PLW1509  (this process has one thread)
    )
    try:
        out, _ = process.communicate(timeout=timeout)
        lines = out.strip().splitlines()
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        lines = []
    import json

    result: dict[str, Any] = (
        json.loads(lines[-1]) if lines and process.returncode == 0 else {"failed": process.returncode}
    )
    result["seconds"] = time.perf_counter() - started
    result["capped"] = group is not None
    if group is not None:
        result["peak_bytes"] = int((group / first).read_text())
        _leave(group)
    return result


def _group(limit: int) -> tuple[Path | None, str]:
    name = f"pragnosia_{os.getpid()}_{time.monotonic_ns()}"
    version_1 = (ROOT_1 / "memory.limit_in_bytes").exists()
    group = (ROOT_1 if version_1 else ROOT_2) / name
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(limit))
    except OSError:
        return None, ""
    return group, "memory.max_usage_in_bytes" if version_1 else "memory.peak"


def _join(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _leave(group: Path) -> None:
    for _ in range(20):
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return
