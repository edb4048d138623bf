"""Is a plan's forecast worth reading? Rates are measured, tokens/s foretold, then measured, case by case.

usage: forecast.py WORK [rounds=3] [tokens=200], as for decode.py; cases without a model in WORK are left out, but for
the mixture that learned (_trained.py), which is made. Each runs under a hard cap equal to its budget.

A case is judged by its middle round; single rounds stand beside it. Rates are measured again afterwards: what a round
would have been foretold by the mean of both tells an error of the arithmetic from a disk that changed its mind. The
table goes into docs/budget.md, too (_tables.py). On a rented machine others may take the processor away (steal time):
a case that lost more than a twentieth to them is measured again, up to five times, and the JSON says what was lost.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bench import publish
from _engines import GIB, run_ours
from _tables import forecast, write_page
from _trained import make_trained

from pragnosia.apps.rates import measured_rates
from pragnosia.inference.plan import Rates
from pragnosia.inference.shelf import open_shelf
from pragnosia.inference.stream import planned

CASES = [
    *(("ckpt", 1.75), ("ckpt", 2.0), ("ckpt", 3.0), ("ckpt", 4.0)),
    *(("int8", 1.25), ("int8", 2.0), ("int4", 1.0), ("mixture", 0.5)),
]
PROMPT = 32
STOLEN, TIMES = 0.05, 5


def ticks() -> tuple[int, int]:
    """Of all processors since the start: those that another guest had instead of us, and all."""
    counts = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return counts[7], sum(counts)


def undisturbed(folder: Path, budget: int, new: int) -> dict[str, Any]:
    """`once` while the processors were ours; the least disturbed where they never were."""
    found = list[dict[str, Any]]()
    while len(found) < TIMES and (not found or found[-1]["stolen"] > STOLEN):
        before = ticks()
        found.append(once(folder, budget, new))
        stolen, everything = (after - earlier for after, earlier in zip(ticks(), before, strict=True))
        found[-1]["stolen"] = stolen / max(1, everything)
    return min(found, key=lambda run: float(run["stolen"])) | {"times": len(found)}


def once(folder: Path, budget: int, new: int) -> dict[str, Any]:
    """Foretell and measure."""
    form = open_shelf(folder).format.name
    before = measured_rates(folder, form=form)
    plan = planned(folder, budget, context=PROMPT + new + 8)[1]
    found = run_ours(folder, budget, PROMPT, new)
    after = measured_rates(folder, form=form)
    around = Rates(memory=(before.memory + after.memory) / 2, disk=(before.disk + after.disk) / 2)
    measured = found["tokens_per_second"]
    return {
        "foretold": plan.tokens_per_second(before),
        "measured": measured,
        "ratio": plan.tokens_per_second(before) / measured,
        "ratio_around": plan.tokens_per_second(around) / measured,
        "hits_foretold": plan.hit_rate,
        "hits_measured": found["hit_rate"],
        "memory_bytes_per_second": before.memory,
        "disk_bytes_per_second": before.disk,
        "memory_bytes_per_second_after": after.memory,
        "disk_bytes_per_second_after": after.disk,
        "awake_bytes": plan.awake_bytes,
        "record_bytes": plan.record,
        "units": plan.num_units,
        "awake": plan.awake,
        "layers": plan.streamed_layers,
        "bytes_read_per_token": found["bytes_read_per_token"],
        "share_waiting": found["share_waiting"],
        "peak_bytes": found.get("peak_bytes"),
    }


def main(work: Path, words: list[str]) -> None:
    """Every case in every round, so that a noisy minute hits them alike."""
    given = dict(word.split("=", 1) for word in words)
    make_trained(work / "mixture")
    cases = [(folder, gib) for folder, gib in CASES if (work / folder).is_dir()]
    runs: dict[str, list[dict[str, Any]]] = {f"{folder}, {gib} GiB": [] for folder, gib in cases}
    for _ in range(int(given.get("rounds", 3))):
        for (folder, gib), found in zip(cases, runs.values(), strict=True):
            found.append(undisturbed(work / folder, int(gib * GIB), int(given.get("tokens", 200))))
            print(folder, gib, found[-1], flush=True)
    values = {"cases": runs}
    publish("A plan's forecast against what came", *forecast(values), values, __file__)
    write_page()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
