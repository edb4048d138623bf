from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from pragnosia.measure.limits import read_limits
from pragnosia.units import GIB, MIB


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_machine_without_groups(tmp_path):
    limits = read_limits(tmp_path)
    assert limits.memory_total == psutil.virtual_memory().total
    assert limits.cores == len(os.sched_getaffinity(0))


def test_version_two(tmp_path):
    group = "sys/fs/cgroup/job"
    files = {
        "proc/self/cgroup": "0::/job\n",
        f"{group}/cpu.max": "50000 100000\n",
        f"{group}/memory.max": f"{GIB}\n",
        f"{group}/memory.current": f"{800 * MIB}\n",
        f"{group}/memory.stat": f"anon 5\ninactive_file {300 * MIB}\n",
    }
    limits = read_limits(write(tmp_path, files))
    assert limits.cores == 0.5
    assert limits.memory_total == GIB
    assert limits.memory_available == GIB - 500 * MIB
    assert len(limits.limited_by) == 2


def test_a_parent_may_be_tighter(tmp_path):
    files = {
        "proc/self/cgroup": "0::/outer/inner\n",
        "sys/fs/cgroup/outer/inner/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/outer/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n",
    }
    limits = read_limits(write(tmp_path, files))
    assert limits.memory_total == GIB
    assert limits.cores == len(os.sched_getaffinity(0))


def test_version_one(tmp_path):
    files = {
        "proc/self/cgroup": "4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{256 * MIB}\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "25000\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
    }
    limits = read_limits(write(tmp_path, files))
    assert limits.cores == 0.25
    assert limits.memory_available == 768 * MIB


@pytest.mark.parametrize("limit", ["max", str(2**63 - 4096)])
def test_no_limit_is_no_limit(tmp_path, limit):
    files = {"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/memory.max": f"{limit}\n"}
    assert read_limits(write(tmp_path, files)).limited_by == ()
