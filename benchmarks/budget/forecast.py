"""Is a plan's forecast worth reading? Rates are measured, tokens/s foretold, then measured, case by case.

usage: forecast.py WORK, as for decode.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bench import publish

from pragnosia.apps.rates import measured_rates
from pragnosia.inference.stream import planned

HERE, GIB = Path(__file__).parent, 1 << 30
CASES = [("ckpt", 1.75), ("ckpt", 2.0), ("ckpt", 3.0), ("ckpt", 4.0), ("int8", 1.25), ("int8", 2.0), ("int4", 1.0)]


def main(work: Path) -> None:
    """Foretell and measure."""
    import json

    rows, results = [], {}
    for folder, gib in CASES:
        budget = int(gib * GIB)
        rates = measured_rates(work / folder)
        plan = planned(work / folder, budget, context=200)[1]
        foretold = plan.tokens_per_second(rates)
        command = [sys.executable, str(HERE / "ours.py"), str(work / folder), str(budget), "32", "96"]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        measured = found["tokens_per_second"]
        name = f"{folder}, {gib} GiB"
        results[name] = {
            "foretold": foretold,
            "measured": measured,
            "hits_foretold": plan.hit_rate,
            "hits_measured": found["hit_rate"],
            "memory_bytes_per_second": rates.memory,
            "disk_bytes_per_second": rates.disk,
            "awake_bytes": plan.awake_bytes,
            "bytes_read_per_token": found["bytes_read_per_token"],
        }
        hits = f"{plan.hit_rate:.2f}/{found['hit_rate']:.2f}"
        rows.append([name, f"{foretold:.2f}", f"{measured:.2f}", f"{foretold / measured:.2f}", hits])
        print(rows[-1], results[name], flush=True)
    header = ["case", "foretold tok/s", "measured", "foretold/measured", "hits foretold/measured"]
    publish("A plan's forecast against what came", header, rows, {"cases": results}, __file__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
