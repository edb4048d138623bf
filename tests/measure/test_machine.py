from __future__ import annotations

import json
import subprocess
from pathlib import Path

from pragnosia.measure.machine import commit, find_processor, library_versions, machine_record, survey


def test_x86(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nmodel name\t: Some Xeon\nflags\t\t: fpu avx2 fma avx512f amx_bf16 sse\n")
    processor = find_processor(file)
    assert processor.model == "Some Xeon"
    assert processor.instructions == ("avx2", "fma", "avx512f", "amx_bf16")


def test_arm(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("Features : fp asimd asimddp bf16 i8mm\n")
    assert find_processor(file).instructions == ("neon", "arm_bf16", "arm_dotprod", "arm_i8mm")


def test_without_cpuinfo_torch_is_asked(tmp_path):
    processor = find_processor(tmp_path / "none")
    assert processor.model
    assert processor.logical >= processor.physical >= 1


def test_a_survey_without_timing_is_whole():
    machine = survey(measure=False)
    assert machine.speeds is None
    assert machine.limits.memory_available <= machine.limits.memory_total
    assert machine.num_threads >= 1
    json.dumps(machine.as_dict())


def test_versions_are_read_from_metadata():
    versions = library_versions()
    assert versions["torch"][0].isdigit()
    assert "no such library" not in versions


def test_a_record_is_small_json():
    record = machine_record()
    assert {"date", "commit", "cpu", "cores", "memory_bytes", "versions", "threads"} <= set(record)
    assert len(json.dumps(record)) < 2000


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_of_the_files_own_checkout(tmp_path):
    source, stranger = tmp_path / "source.py", tmp_path / "installed.py"
    source.write_text("")
    assert commit(source) is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "source.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(source) == head
    stranger.write_text("")
    assert commit(stranger) is None
    source.write_text("changed")
    assert commit(source) == head + "+"
