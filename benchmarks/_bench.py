"""What every benchmark shares: arms timed in turn, so that a noisy machine hits them alike; a table; a JSON beside."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pragnosia.measure.machine import machine_record

Arm = Callable[[], tuple[float, float]]
"""Does its work once; returns how much it did (tokens, say) and in how many seconds."""


def timed(work: Callable[[], float]) -> Arm:
    """An arm from work that returns how much it did."""

    def arm() -> tuple[float, float]:
        started = time.perf_counter()
        done = work()
        return done, time.perf_counter() - started

    return arm


def in_turn(arms: dict[str, Arm], *, rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Rates [work/s] of each arm, one per round; every round runs all arms once, so ratios pair up."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(warm_up + rounds):
        for name, work in arms.items():
            done, seconds = work()
            if number >= warm_up:
                rates[name].append(done / seconds)
    return rates


def median(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Ours over theirs, round by round: median and spread."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": median(pairs), "min": min(pairs), "max": max(pairs)}


def spread(values: dict[str, float]) -> str:
    """A ratio for a table."""
    return f"{values['median']:.2f}x ({values['min']:.2f}-{values['max']:.2f})"


def earlier(script: str, key: str) -> dict[str, Any]:
    """What the JSON beside the script holds under `key`: a benchmark asked for one case keeps the others."""
    path = Path(script).with_suffix(".json")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))[key] if path.exists() else {}
    return found


def publish(
    question: str, header: list[str], rows: list[list[Any]], values: dict[str, Any], script: str, *, parts: bool = False
) -> None:
    """Print the table and write the JSON beside the script; where `values` are parts, each has its own machine."""
    table = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    print(f"\n{question}")
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    path = Path(script).with_suffix(".json")
    record = {"question": question, **({} if parts else {"machine": machine_record()}), **values}
    path.write_text(json.dumps(record, indent=1, default=str) + "\n", "utf-8")
    print(f"written: {path.name}")
