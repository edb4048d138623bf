"""Is a plan's forecast worth reading? Rates are measured, tokens/s foretold, then measured, case by case.

usage: forecast.py WORK [rounds=3], as for decode.py. A case is judged by its middle round.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bench import median, publish

from pragnosia.apps.rates import measured_rates
from pragnosia.inference.stream import planned

HERE, GIB = Path(__file__).parent, 1 << 30
CASES = [("ckpt", 1.75), ("ckpt", 2.0), ("ckpt", 3.0), ("ckpt", 4.0), ("int8", 1.25), ("int8", 2.0), ("int4", 1.0)]


def once(folder: Path, budget: int) -> dict[str, Any]:
    """Foretell and measure."""
    rates = measured_rates(folder)
    plan = planned(folder, budget, context=200)[1]
    command = [sys.executable, str(HERE / "ours.py"), str(folder), str(budget), "32", "96"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    return {
        "foretold": plan.tokens_per_second(rates),
        "measured": found["tokens_per_second"],
        "ratio": plan.tokens_per_second(rates) / found["tokens_per_second"],
        "hits_foretold": plan.hit_rate,
        "hits_measured": found["hit_rate"],
        "memory_bytes_per_second": rates.memory,
        "disk_bytes_per_second": rates.disk,
        "awake_bytes": plan.awake_bytes,
        "bytes_read_per_token": found["bytes_read_per_token"],
    }


def main(work: Path, rounds: int) -> None:
    """Every case in every round, so that a noisy minute hits them alike."""
    runs: dict[str, list[dict[str, Any]]] = {f"{folder}, {gib} GiB": [] for folder, gib in CASES}
    for _ in range(rounds):
        for (folder, gib), found in zip(CASES, runs.values(), strict=True):
            found.append(once(work / folder, int(gib * GIB)))
            print(folder, gib, found[-1], flush=True)
    rows = []
    for name, found in runs.items():
        told, came, ratios, *hits = (
            [one[key] for one in found] for key in ("foretold", "measured", "ratio", "hits_foretold", "hits_measured")
        )
        spread = f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        rows.append(
            [name, f"{median(told):.2f}", f"{median(came):.2f}", spread, "/".join(f"{median(h):.2f}" for h in hits)]
        )
    header = ["case", "foretold tok/s", "measured", "foretold/measured", "hits foretold/measured"]
    publish("A plan's forecast against what came", header, rows, {"cases": runs}, __file__)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(dict(word.split("=") for word in sys.argv[2:]).get("rounds", 3)))
