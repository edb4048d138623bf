"""What does a one-pass learner add to a model that learned the same text, and what to one that did not?

    python benchmarks/spiking/beside.py NAME=MODEL [NAME=MODEL ...] --learner runs/once --data LAST-TENTH

    pragnosia eval MODEL --data TEXT [--beside LEARNER [--learn]]

Bits per byte of the text by each model alone, with the learner beside it (weights of its tables still; those of the
mixture always move), and with a learner that goes on learning; and by the learner alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from _bench import earlier, publish
from lines import pragnosia


def main() -> None:
    """Every model; those of an earlier call stay in the JSON."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("models", nargs="+", help="NAME=DIRECTORY")
    options.add_argument("--learner", required=True)
    options.add_argument("--data", required=True)
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    found: dict[str, Any] = earlier(__file__, "models")
    for name, folder in (("the learner by itself", chosen.learner), *(one.split("=", 1) for one in chosen.models)):
        beside = () if folder == chosen.learner else ("--beside", chosen.learner)
        found[name] = {
            **({"alone": scored(folder, chosen)} if beside else {}),
            "still": scored(folder, chosen, *beside),
            "learning": scored(folder, chosen, *beside, "--learn"),
        }
        print(name, found[name], flush=True)
    rows = [
        [name, *(f"{one[how]['bits_per_byte']:.3f}" if how in one else "" for how in ("alone", "still", "learning"))]
        for name, one in found.items()
    ]
    header = ["model", "alone", "learner beside it, still", "learning"]
    publish("What does a one-pass learner add, in bits per byte?", header, rows, {"models": found}, __file__)


def scored(folder: str, chosen: argparse.Namespace, *words: str) -> dict[str, float]:
    """What `eval` says."""
    told = pragnosia("eval", folder, "--data", chosen.data, *words, threads=chosen.threads)
    return {name: told[name] for name in ("bits_per_byte", "bytes", "seconds")}


if __name__ == "__main__":
    main()
