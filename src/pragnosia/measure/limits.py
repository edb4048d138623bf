"""What this process may use: control groups, affinity, and what the machine has beneath them.

A container on a 64-core, 512 GB server may be allowed 2 cores and 4 GB; planning with the server's figures
ends in a killed process. Linux control groups v1 and v2; elsewhere the machine's own figures hold.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

# v1 writes "no limit" as the largest page-aligned int64; anything near it is no limit either.
_UNLIMITED = 1 << 60


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Cores and bytes this process may use; `cores` is fractional where a quota is."""

    cores: float
    memory_total: int
    memory_available: int
    limited_by: tuple[str, ...]


def read_limits(root: Path = Path("/")) -> Limits:
    """The tightest of machine, affinity and control group; `root` lets a test hold the files."""
    memory = psutil.virtual_memory()
    limited_by = []
    cores = float(_affinity())
    quota = _cpu_quota(root)
    if quota is not None and quota < cores:
        cores = quota
        limited_by.append("cpu quota of the control group")
    elif cores < (os.cpu_count() or 1):
        limited_by.append("cpu affinity of the process")
    total, available = int(memory.total), int(memory.available)
    limit = _memory_limit(root)
    if limit is not None and limit[0] < total:
        total = limit[0]
        available = min(available, max(0, limit[0] - limit[1]))
        limited_by.append("memory limit of the control group")
    return Limits(cores=cores, memory_total=total, memory_available=available, limited_by=tuple(limited_by))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group for `controller`, the group itself first, then its parents."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    base = root / "sys/fs/cgroup"
    for line in lines:
        _, names, group = line.split(":", 2)
        if names == "":
            mount = base
        elif controller in names.split(","):
            # Mounted under its own name or under all of them ("cpu,cpuacct").
            mount = base / controller if (base / controller).exists() else base / names
        else:
            continue
        folder = mount / group.lstrip("/")
        yield folder
        while folder != mount and mount in folder.parents:
            folder = folder.parent
            yield folder


def _number(path: Path) -> int | None:
    """The integer in a file; None where there is no file, no permission or the word `max`."""
    try:
        text = path.read_text().split()
        return int(text[0])
    except (OSError, ValueError, IndexError):
        return None


def _field(path: Path, name: str) -> int:
    """One field of a `key value` file, 0 where absent."""
    try:
        pairs = dict(line.split(maxsplit=1) for line in path.read_text().splitlines())
        return int(pairs.get(name, 0))
    except (OSError, ValueError):
        return 0


def _cpu_quota(root: Path) -> float | None:
    """Cores a quota allows, the tightest along the path to the root group."""
    quotas = []
    for folder in _groups(root, "cpu"):
        try:
            quota, period = (int(word) for word in (folder / "cpu.max").read_text().split())
        except (OSError, ValueError):
            found, length = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
            quota, period = found or -1, length or 0
        if quota > 0 and period > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def _memory_limit(root: Path) -> tuple[int, int] | None:
    """(limit, bytes in use) of the tightest group; page cache that can be dropped does not count as used."""
    tightest: tuple[float, int] = (math.inf, 0)
    for folder in _groups(root, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if limit is None or limit >= _UNLIMITED or limit >= tightest[0]:
            continue
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        stat = folder / "memory.stat"
        droppable = _field(stat, "inactive_file") or _field(stat, "total_inactive_file")
        tightest = (limit, max(0, used - droppable))
    return None if math.isinf(tightest[0]) else (int(tightest[0]), tightest[1])
