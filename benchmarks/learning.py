"""Does a sparse model learn more than a dense one of equal active compute, from the same tokens, each at its best rate?

`pragnosia compare` does the work: both arms sweep their learning rate alike, then train with three seeds on the books
of PRAGNOSIA_DATA. The dense arm is as wide as the sparse one's awake units and router cost. JSON beside this file.

    python benchmarks/learning.py [SEEDS] [STEPS] [OUT]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from _bench import publish

from pragnosia.training.compare import Sweep, compare

CONFIG = Path(__file__).with_suffix(".yaml")
BOOKS = "text_en/books_pd.train.txt.xz"


def main(seeds: int, steps: int, out: str) -> None:
    """Run the comparison and keep its numbers."""
    named = os.environ.get("PRAGNOSIA_DATA")
    if not named or not (Path(named) / BOOKS).is_file():
        print(f"skipped: PRAGNOSIA_DATA names no folder with {BOOKS}")
        return
    report = compare(
        [CONFIG], data=[str(Path(named) / BOOKS)], seeds=seeds, out=out, overrides=[f"steps={steps}"], sweep=Sweep()
    )
    rows = []
    for arm in report.arms:
        gap = arm.against_dense
        rows.append(
            [
                arm.name,
                f"{arm.bits_per_byte.mean:.4f} +- {arm.bits_per_byte.std:.4f}",
                "" if gap is None else f"{gap.mean:+.4f} ({gap.min:+.4f} to {gap.max:+.4f})",
                f"{arm.total_parameters:,}",
                f"{arm.active_parameters:,}",
                f"{arm.operations_per_token:,}",
                f"{arm.learning_rate:g}",
            ]
        )
    values = report.to_dict()
    values.pop("out")
    header = ["arm", "bits/byte", "against dense", "parameters", "active", "operations/token", "rate"]
    publish("Held-out bits per byte at equal active compute and equal tokens", header, rows, values, __file__)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        int(arguments[0]) if arguments else 3,
        int(arguments[1]) if len(arguments) > 1 else 200,
        arguments[2] if len(arguments) > 2 else "runs/learning",
    )
