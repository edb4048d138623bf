"""Building the compiled kernels: found again, shared by processes, and done without where there is no compiler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pragnosia import kernels
from pragnosia.kernels import compiled, memory, native, triton


def loaded_anew() -> str:
    """What a fresh process would find."""
    return compiled._load.__wrapped__()[1]


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRAGNOSIA_NATIVE", "0")
    assert loaded_anew() == "off (PRAGNOSIA_NATIVE=0)"


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert loaded_anew() == "off (no C++ compiler; install g++ or set CXX)"


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken++"
    broken.write_text("#!/bin/sh\ncase $1 in --version) echo 1;; *) echo 'no header' >&2; exit 1;; esac\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert loaded_anew() == f"off ({broken}: no header)"
    assert not list((tmp_path / "pragnosia" / "kernels").iterdir())  # nothing half-built stays


@pytest.mark.parametrize("off", ["native", "triton"])
def test_a_bank_without(off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native if off == "native" else triton, "supports", lambda *_: False)
    y = kernels.bank(
        torch.randn(3, 4),
        torch.tensor([[0], [1], [-1]]),
        torch.ones(3, 1),
        torch.randn(2, 6, 4),
        torch.randn(2, 4, 3),
        activation="swiglu",
    )
    assert y[:2].any()
    assert not y[2].any()


@pytest.mark.skipif(compiled.native_library() is None, reason=f"compiled kernels are {kernels.native_status()}")
def test_built_once_and_found_again() -> None:
    library = Path(kernels.native_status().split(", ")[1].rstrip(")"))
    before = library.stat().st_mtime_ns
    assert loaded_anew() == kernels.native_status()
    assert library.stat().st_mtime_ns == before


@pytest.mark.skipif(compiled.native_library() is None, reason=f"compiled kernels are {kernels.native_status()}")
def test_uses_torchs_own_threads() -> None:
    """One OpenMP runtime in the process: two would fight over the cores."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    runtimes = {line.split()[-1] for line in maps.read_text().splitlines() if "gomp" in line or "libomp" in line}
    assert len(runtimes) <= 1, runtimes


def test_large_pages_keep_the_values() -> None:
    big = torch.arange(3 << 20, dtype=torch.float32)
    memory.ask_huge_pages(big)
    assert torch.equal(big, torch.arange(3 << 20, dtype=torch.float32))
    assert not memory.ask_huge_pages(torch.zeros(3))
