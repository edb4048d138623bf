from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pragnosia import kernels
from pragnosia.apps.rates import measured_rates
from pragnosia.errors import UserError
from pragnosia.measure.bandwidth import (
    device_speed,
    disk_speed,
    link_bandwidth,
    matrix_throughput,
    memory_bandwidth,
    reading_speed,
    single_reads,
    weight_bandwidth,
)
from pragnosia.units import MIB

CPU = torch.device("cpu")


def test_memory_and_arithmetic_have_plausible_speeds():
    assert 1e8 < memory_bandwidth(CPU, seconds=0.02, num_bytes=64 * MIB) < 1e13
    assert 1e8 < matrix_throughput(CPU, torch.float32, seconds=0.02, size=256) < 1e15


def test_a_copy_has_a_plausible_speed():
    assert 1e8 < link_bandwidth(CPU, seconds=0.02, num_bytes=64 * MIB) < 1e13


def test_a_disk_is_timed_and_left_clean(tmp_path):
    speed = disk_speed(tmp_path, num_bytes=16 * MIB, seconds=0.5)
    assert speed.read_bytes_per_second > 1e5
    assert speed.write_bytes_per_second > 1e5
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_direct_reading(tmp_path, monkeypatch):
    monkeypatch.delattr("os.O_DIRECT")
    assert disk_speed(tmp_path, num_bytes=4 * MIB, seconds=0.2).direct is False


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot measure the disk"):
        disk_speed(tmp_path / "none")


@pytest.mark.gpu
def test_a_gpu_is_faster_in_bf16():
    speed = device_speed(torch.device("cuda"), seconds=0.1)
    assert speed.operations_per_second["bfloat16"] > speed.operations_per_second["float32"]
    assert speed.memory_bytes_per_second > 1e11
    assert 1e9 < link_bandwidth(torch.device("cuda"), seconds=0.1) < speed.memory_bytes_per_second


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8", "int2", "bf16-2:4"])
def test_weights_are_read_at_a_rate_of_their_format(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1e7 < weight_bandwidth(name, seconds=0.01, num_bytes=8 * MIB) < 1e13
    monkeypatch.setattr("pragnosia.measure.bandwidth.native_library", lambda: None)
    monkeypatch.setattr("pragnosia.measure.bandwidth.memory_bandwidth", lambda *_, **__: 7.0)
    assert weight_bandwidth(name) == 7.0, "nothing to time: the memory's own rate"


@pytest.mark.parametrize("size", [5 << 20, (300 << 20) + 4097])
def test_what_lies_there_is_read_past_the_cache(size: int, tmp_path: Path) -> None:
    """A file of holes takes no room; every stretch of it is read, and none beyond its end."""
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(size)
    read: list[tuple[int, int]] = []
    real = os.preadv

    def preadv(descriptor: int, buffers: list[Any], offset: int) -> int:
        got = real(descriptor, buffers, offset)
        read.append((offset, got))
        return got

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", preadv)
        assert reading_speed(tmp_path / "model.safetensors", seconds=0.2) > 0
    assert read
    assert all(offset + got <= size for offset, got in read)
    assert {got for _, got in read} == {1 << 20}


def test_the_disk_is_measured_by_the_weights_that_lie_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pragnosia.measure.bandwidth.reading_speed", lambda file: float(file.stat().st_size))
    given = {"memory": 1e9}
    with (tmp_path / "b.gguf").open("wb") as file:
        file.truncate(300 << 20)
    (tmp_path / "a.safetensors").write_bytes(b"?")
    assert measured_rates(tmp_path, given).disk == 300 << 20
    assert not measured_rates(tmp_path, given).assumed


@pytest.mark.skipif(kernels.native_library() is None, reason="no compiled kernels here")
def test_single_reads_are_timed_by_a_file_large_enough(tmp_path: Path) -> None:
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.truncate(1 << 20)
    with pytest.raises(UserError, match="too small to time single reads"):
        single_reads(tmp_path / "a.safetensors")
    given = {"memory": 1e9, "disk": 1e9}
    assert measured_rates(tmp_path, given, rows=True).assumed == ("reads",)
    with (tmp_path / "b.bin").open("wb") as file:
        file.truncate(64 << 20)
    rates = measured_rates(tmp_path, given, rows=True)
    assert not rates.assumed
    assert 1 < rates.reads < 1e9
