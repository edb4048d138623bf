"""A model larger than memory in Python: ours beside accelerate's offloading and beside AirLLM, under the same hard cap.

The model is WORK/ckpt, the 8 GB mixture of random weights (made if it is not there), in bfloat16 at 4 GiB. 32 tokens of
prompt, then fixed random tokens, for at most a minute. `ready` is the time from the start of the process until it can
begin to compute, imports and loading included; what a peer prepares once and keeps (AirLLM's split copy) comes before.

Each peer runs in a Python of its own, whose packages are none of ours; a case without one is left out:

  peers.py WORK accelerate=PYTHON airllm=PYTHON [rounds=2] [tokens=48]

accelerate wants torch, transformers and accelerate; AirLLM 4.0.0 fails under transformers 5 and ran with 4.57.3. Copies
that peers write (6 and 8 GB) lie in WORK/scratch and are deleted afterwards.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bench import earlier, median, publish
from _engines import GIB, Run, Runs, in_turn, make_checkpoint, over_rounds, run_ours, run_transformers
from _peer_tables import write_page

CAP, PROMPT = 4 * GIB, 32
AIMS = {"accelerate": 9, "airllm": 20}


def accelerate(work: Path, python: str, rounds: int, new: int) -> Runs:
    """It copies what does not fit when it loads, every time: no second run finds anything prepared."""
    folder, scratch = work / "ckpt", work / "scratch" / "accelerate"

    def peer() -> Run:
        found = run_transformers(python, "accelerate", folder, scratch, CAP, PROMPT, new)
        shutil.rmtree(scratch, ignore_errors=True)
        return found

    return in_turn({"ours": lambda: run_ours(folder, CAP, PROMPT, new), "peer": peer}, rounds)


def airllm(work: Path, python: str, rounds: int, new: int) -> Runs:
    """It splits the checkpoint into a copy by layers, once."""
    folder, scratch = work / "ckpt", work / "scratch" / "airllm"
    try:
        prepared = run_transformers(python, "airllm", folder, scratch, CAP, PROMPT, 1)
        engines = {
            "ours": lambda: run_ours(folder, CAP, PROMPT, new),
            "peer": lambda: run_transformers(python, "airllm", folder, scratch, CAP, PROMPT, new),
        }
        runs = in_turn(engines, rounds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return runs | {"preparing": [prepared]}


CASES: dict[str, Callable[[Path, str, int, int], Runs]] = {"accelerate": accelerate, "airllm": airllm}


def main(work: Path, words: list[str]) -> None:
    """Measure the cases that have a Python; results of other cases in the JSON stay."""
    given = dict(word.split("=", 1) for word in words)
    rounds, new = int(given.pop("rounds", 2)), int(given.pop("tokens", 48))
    if unknown := given.keys() - CASES.keys():
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}, each with =PYTHON")
    make_checkpoint(work / "ckpt")
    measured = {case: CASES[case](work, python, rounds, new) for case, python in given.items()}
    results = earlier(__file__, "cases") | measured
    header = ["peer at 4 GiB", "ours tok/s", "its tok/s", "ratio (aim)", "MB read per token", "ready s", "peak MiB"]
    rows = [_row(case, runs) for case, runs in results.items()]
    publish("A model larger than memory: ours beside Python's ways", header, rows, {"cases": results}, __file__)
    write_page()


def _row(case: str, runs: Runs) -> list[str]:
    def both(key: str, scale: float, digits: int) -> str:
        found = over_rounds({name: runs[name] for name in ("ours", "peer")}, key)
        return "/".join(f"{median(values) / scale:.{digits}f}" if values else "failed" for values in found.values())

    rates = over_rounds({name: runs[name] for name in ("ours", "peer")}, "tokens_per_second")
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    spread = f"{median(ratios):.1f}x ({min(ratios):.1f}-{max(ratios):.1f}; {AIMS[case]}x)" if ratios else "failed"
    mine, peer = both("tokens_per_second", 1, 3).split("/")
    reads, ready = both("bytes_read_per_token", 1e6, 0), both("seconds_to_load", 1, 1)
    return [case, mine, peer, spread, reads, ready, both("peak_bytes", 1 << 20, 0)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
