"""The engines that are raced here: each runs alone under a hard cap that counts the page cache, and begins cold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _capped import capped, forget

Run = dict[str, Any]
Runs = dict[str, list[Run]]
"""Of each engine, one a round."""
HERE, GIB = Path(__file__).parent, 1 << 30
FREE = 22 * GIB
"""A cap that none of them reaches."""


def make_checkpoint(folder: Path, *shape: int) -> None:
    """A random mixture where there is none; the shape as checkpoint.py wants it."""
    if not (folder / "config.json").is_file():
        subprocess.run([sys.executable, str(HERE / "checkpoint.py"), str(folder), *map(str, shape)], check=True)


def run_ours(folder: Path, cap: int, prompt: int, new: int) -> dict[str, Any]:
    """Ours, told of the very cap; without one the whole model is loaded first, as the others do."""
    forget(folder)
    budget = 0 if cap == FREE else cap
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


def in_turn(engines: dict[str, Callable[[], Run]], rounds: int) -> Runs:
    """One after the other, so that a noisy machine hits them alike."""
    runs: Runs = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            runs[name].append(engine())
            print(name, json.dumps(runs[name][-1]), flush=True)
    return runs


def over_rounds(runs: Runs, key: str) -> dict[str, list[float]]:
    """One value a round of each engine; of none where a round failed."""
    found = {name: [one[key] for one in of if key in one] for name, of in runs.items()}
    whole = all(len(values) == len(runs[name]) > 0 for name, values in found.items())
    return found if whole else {name: [] for name in found}
