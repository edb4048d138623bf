"""How much grammar does a model know? Minimal pairs (BLiMP, arXiv:1912.00582) through lm-evaluation-harness.

    python benchmarks/blimp.py [MODEL] [PAIRS] [--limit N]

MODEL is a directory (runs/demo), PAIRS a JSON lines file with the columns good, bad and UID
($PRAGNOSIA_DATA/eval_en/blimp.even.jsonl.xz). Chance is 50 %; equal scores count as wrong.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from _bench import publish

from pragnosia import Pragnosia
from pragnosia.measure.harness import run_tasks
from pragnosia.measure.harness_tasks import sentence_pairs, write_task


def main(model: Path, pairs: Path, limit: int | None) -> None:
    """Ask, and tell of the best and the worst paradigms."""
    speaker = Pragnosia.from_pretrained(model)
    with tempfile.TemporaryDirectory() as folder:
        write_task(folder, "blimp", sentence_pairs(pairs))
        result = run_tasks(speaker, ["blimp"], folder, limit=limit)["blimp"]
    ranked = sorted(result["groups"].items(), key=lambda entry: -entry[1])
    rows = [["all", f"{result['acc']:.3f} ± {result['acc_stderr']:.3f}"]]
    rows += [[name, f"{accuracy:.3f}"] for name, accuracy in [*ranked[:5], *ranked[-5:]]]
    values = {"model": model.name, "parameters": speaker.model.num_parameters(), **result}
    question = f"{model.name}: share of {result['samples']} pairs whose good sentence is likelier"
    publish(question, ["paradigm", "accuracy"], rows, values, __file__)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=Path("runs/demo"))
    shared = Path(os.environ.get("PRAGNOSIA_DATA", "data"))
    parser.add_argument("pairs", nargs="?", type=Path, default=shared / "eval_en/blimp.even.jsonl.xz")
    parser.add_argument("--limit", type=int, help="pairs to ask; all of them unless given")
    given = parser.parse_args()
    missing = [path for path in (given.model, given.pairs) if not path.exists()]
    if missing:
        print(f"skipped: there is no {missing[0]}; see --help")
    else:
        main(given.model, given.pairs, given.limit)
