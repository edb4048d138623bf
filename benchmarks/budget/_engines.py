"""The engines that are raced here: each runs alone under a hard cap that counts the page cache, and begins cold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from _capped import capped, forget

HERE, GIB = Path(__file__).parent, 1 << 30
FREE = 22 * GIB
"""A cap that none of them reaches."""


def make_checkpoint(folder: Path, *shape: int) -> None:
    """A random mixture where there is none; the shape as checkpoint.py wants it."""
    if not (folder / "config.json").is_file():
        subprocess.run([sys.executable, str(HERE / "checkpoint.py"), str(folder), *map(str, shape)], check=True)


def run_ours(folder: Path, cap: int, prompt: int, new: int) -> dict[str, Any]:
    """Ours, told to stay a little below the cap."""
    forget(folder)
    budget = cap - (cap >> 7)  # what the kernel charges for sockets, page tables and the like
    return capped([sys.executable, str(HERE / "ours.py"), str(folder), str(budget), str(prompt), str(new)], cap)


def run_llama(file: Path, cap: int, prompt: int, new: int) -> dict[str, Any]:
    """llama.cpp; empty where it or its file is not there."""
    python = os.environ.get("LLAMA_PYTHON")
    if not python or not file.is_file():
        return {}
    forget(file)
    threads = str(len(os.sched_getaffinity(0)))
    command = [*python.split(), str(HERE / "peer_llama.py"), str(file), threads, str(prompt), str(new)]
    return capped(command, cap, environment={"MOST_SECONDS": "40", "PYTHONPATH": os.environ.get("LLAMA_PATH", "")})


def run_transformers(
    python: str, way: str, folder: Path, scratch: Path, cap: int, prompt: int, new: int
) -> dict[str, Any]:
    """transformers under accelerate or AirLLM, in the Python where they are; see peer_transformers.py."""
    forget(folder)
    if scratch.is_dir():
        forget(scratch)
    worker = str(HERE / "peer_transformers.py")
    command = [python, worker, way, str(folder), str(scratch), str(cap), str(prompt), str(new)]
    return capped(command, cap, timeout=900, environment={"MOST_SECONDS": "60", "PYTHONPATH": ""})
