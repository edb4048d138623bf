from __future__ import annotations

from dataclasses import replace

import pytest

from pragnosia.measure.advice import diagnose
from pragnosia.measure.bandwidth import DeviceSpeed, DiskSpeed, Speeds
from pragnosia.measure.limits import Limits
from pragnosia.measure.machine import Accelerator, Machine, Processor
from pragnosia.units import GIB

SPEEDS = Speeds(
    devices=(
        DeviceSpeed(
            device="cpu",
            memory_bytes_per_second=2e10,
            operations_per_second={"float32": 1e11, "bfloat16": 3e11},
        ),
    ),
    disk=DiskSpeed(folder="/data", read_bytes_per_second=2e9, write_bytes_per_second=1e9, direct=True),
)
MACHINE = Machine(
    processor=Processor(model="cpu", physical=16, logical=32, instructions=("avx2", "avx512_bf16")),
    limits=Limits(cores=16, memory_total=64 * GIB, memory_available=48 * GIB, limited_by=()),
    accelerators=(),
    platform="Linux",
    python="3.12",
    libraries={"torch": "2.13.0+cpu", "transformers": "5.23.0"},
    num_threads=16,
    speeds=SPEEDS,
)


def said(machine: Machine, level: str | None = None) -> str:
    return "\n".join(entry.text for entry in diagnose(machine) if level in (None, entry.level))


def test_a_good_machine_is_told_what_fits():
    assert said(MACHINE, "broken") == ""
    text = said(MACHINE)
    columns = "braingpt-small, braingpt-medium, braingpt-large, braingpt-xlarge"
    assert f"48 GiB free is enough to run in bf16: nano, small, 1b, 7b, {columns}, brain-lm, brain-lm-spiking\n" in text
    assert "train in bf16" in text


def test_streaming_is_bounded_by_the_disk():
    assert "60b 0.19" in said(MACHINE, "slow")
    through_cache = replace(SPEEDS, disk=replace(SPEEDS.disk, direct=False))
    assert "page cache" in said(replace(MACHINE, speeds=through_cache), "slow")


def test_nothing_is_claimed_of_speeds_nobody_measured():
    assert "tokens/s" not in said(replace(MACHINE, speeds=None))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_threads": 32}, "set OMP_NUM_THREADS=16"),
        ({"num_threads": 1, "environment": {"OMP_NUM_THREADS": "1"}}, "leaves 15 of 16 cores idle"),
        ({"processor": replace(MACHINE.processor, instructions=("avx2",))}, "no bf16 instructions"),
        ({"limits": replace(MACHINE.limits, cores=2, limited_by=("cpu quota",))}, "2 cores and no GPU"),
        ({"libraries": MACHINE.libraries | {"torchvision": "0.28.0"}}, "pip uninstall torchvision"),
        ({"libraries": {"torch": "2.9.1", "transformers": "5.23.0"}}, "torch is 2.9.1, tested is at least 2.11"),
        ({"libraries": {"torch": "2.11.0", "transformers": "6.1"}}, "at least 5.17 and below 6"),
        ({"libraries": {"torch": "2.11.0"}}, "transformers is not installed"),
        ({"native_kernel": "no compiler"}, "no compiler"),
    ],
)
def test_each_trouble_is_named(changes, words):
    assert words in said(replace(MACHINE, **changes))
    assert words not in said(MACHINE)


def test_an_old_gpu_without_triton():
    gpu = Accelerator(name="V100", memory_total=16 * GIB, memory_available=15 * GIB, capability="7.0")
    text = said(replace(MACHINE, accelerators=(gpu,)), "slow")
    assert "V100 (compute capability 7.0) has no bf16" in text
    assert "pip install triton" in text


def test_too_little_memory_for_anything():
    tiny = replace(MACHINE.limits, memory_available=GIB // 8)
    assert "no preset" in said(replace(MACHINE, limits=tiny))


def test_what_is_broken_comes_first():
    levels = [entry.level for entry in diagnose(replace(MACHINE, libraries={}, num_threads=64))]
    assert levels == sorted(levels, key=("broken", "slow", "note").index)
