"""What every test stands on: one thread, fixed seeds, no network, and the folder of real text where there is one."""

from __future__ import annotations

import os

# Before torch, tokenizers or a Hugging Face library is imported: they read these once.
os.environ.update(
    MKL_CBWR="AUTO",  # as pragnosia sets it, for tests that multiply before they import it
    OMP_NUM_THREADS="1",  # pytest-xdist gives each core a worker of its own
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    MPLBACKEND="Agg",
)

import ctypes
import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, max_examples=50, print_blob=True)
hypothesis.settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--slow` runs the tests marked slow."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with a reason, what this machine or this run is not for."""
    reasons = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "needs a CUDA device, torch sees none"
    if not config.getoption("--slow"):
        reasons["slow"] = "slow: runs with --slow (make test-all)"
    for item in items:
        for marker, reason in reasons.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  what libraries draw from
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _plan_as_in_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has run a thousand tests holds more memory than any command does; plans count a fresh one's."""
    monkeypatch.setattr("pragnosia.inference.budget.resident_memory", lambda: 400 * 2**20)


@pytest.fixture
def permissions_bind() -> Iterator[None]:
    """Root may read everything, and CI is often root: within the test it is bound by permissions, as are its children.

    Two capabilities of this thread are laid down, and SECBIT_NOROOT keeps a child from taking them up again
    (capabilities(7)).
    """
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, before = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    override, read_search = 1 << 1, 1 << 2
    laid_down = (ctypes.c_uint32 * 6)(*before)
    laid_down[0] &= ~(override | read_search)  # of the effective ones; the permitted ones stay, to go back to
    get_bits, set_bits, no_root = 27, 28, 1
    bits = libc.prctl(get_bits)
    if libc.prctl(set_bits, bits | no_root) or libc.capset(header, laid_down):
        pytest.skip(f"root keeps its powers here: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0
        assert libc.prctl(set_bits, bits) == 0


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real text that PRAGNOSIA_DATA names."""
    named = os.environ.get("PRAGNOSIA_DATA")
    if not named:
        pytest.skip("PRAGNOSIA_DATA is not set: it names a folder of real text")
    folder = Path(named)
    assert folder.is_dir(), f"PRAGNOSIA_DATA is {named!r}, which is not a folder; mend or unset it"
    return folder
