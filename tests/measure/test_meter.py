from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pragnosia.errors import UserError
from pragnosia.measure import meter as meter_module
from pragnosia.measure.meter import EnergyMeter, NvmlCounter, RaplCounter, find_counters


def zone(root: Path, folder: str, name: str, microjoules: int, turn: int = 1_000_000) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(name + "\n")
    (path / "max_energy_range_uj").write_text(f"{turn}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


def test_packages_and_dram_are_counted_once(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 200)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 300)
    inside = zone(tmp_path, "intel-rapl:0:0", "core", 400)
    around = zone(tmp_path, "intel-rapl:2", "psys", 500)
    counter = RaplCounter(tmp_path)
    for file, value in ((first, 1100), (second, 2200), (memory, 3300), (inside, 10**5), (around, 10**5)):
        file.write_text(str(value))
    assert counter.joules() == pytest.approx(6000e-6)


def test_a_counter_that_turned_over(tmp_path):
    file = zone(tmp_path, "intel-rapl:0", "package-0", 999_000)
    counter = RaplCounter(tmp_path)
    file.write_text("1000")
    assert counter.joules() == pytest.approx(2000e-6)
    file.write_text("500")
    assert counter.joules() == pytest.approx((2000 + 999_500) * 1e-6)


def test_a_meter_sees_turns_while_the_work_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(meter_module, "_SECONDS_BETWEEN_READINGS", 0.001)
    file = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    counter = RaplCounter(tmp_path)
    seen = []
    monkeypatch.setattr(counter, "_read", lambda: seen.append(1) or [int(file.read_text() or 0)])
    with EnergyMeter([counter]) as meter:
        while len(seen) < 5:
            pass
        file.write_text("250000")
    assert meter.measured is not None
    assert meter.measured.joules == pytest.approx(0.25)
    assert meter.measured.source == "rapl"


class Steady:
    """A GPU's counter that adds a joule a reading."""

    source = "nvml"

    def __init__(self) -> None:
        self.readings = 0

    def joules(self) -> float:
        self.readings += 1
        return float(self.readings)


def test_counters_add_up_and_are_named(tmp_path):
    file = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with EnergyMeter([RaplCounter(tmp_path), Steady()]) as meter:
        file.write_text("500000")
    assert meter.measured is not None
    assert meter.measured.source == "rapl+nvml"
    assert meter.measured.joules == pytest.approx(1.5)


def test_without_counters_nothing_is_invented():
    with EnergyMeter([]) as meter:
        pass
    assert meter.measured is None


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(meter_module, "POWERCAP", tmp_path / "none")
    monkeypatch.setattr(RaplCounter.__init__, "__defaults__", (tmp_path / "none",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found, missing = find_counters()
    assert found == []
    assert "is absent" in missing[0]
    assert "torch sees no GPU" in missing[1]


def test_no_permission_names_the_cure(tmp_path, monkeypatch):
    energy = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    read = Path.read_text

    def refuse(path: Path) -> str:
        if path == energy:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match="sudo chmod"):
        RaplCounter(tmp_path)


def test_a_folder_without_packages(tmp_path):
    zone(tmp_path, "intel-rapl:0", "psys", 0)
    with pytest.raises(UserError, match="no package zone"):
        RaplCounter(tmp_path)


@pytest.mark.gpu
def test_a_gpu_counts_its_joules():
    work = torch.ones(4096, 4096, device="cuda")
    with EnergyMeter([NvmlCounter()]) as meter:
        for _ in range(500):
            work @ work
        torch.cuda.synchronize()
    assert meter.measured is not None
    assert meter.measured.joules > 0.1
