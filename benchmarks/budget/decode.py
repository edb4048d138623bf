"""How fast does a model larger than its memory speak? Ours beside llama.cpp, each alone under the same hard cap.

usage: decode.py WORK [CASE…] [rounds=3]; WORK holds (or gets) the checkpoint `ckpt`, its packed forms `int8` and
`int4`, and, for llama.cpp, `bf16.gguf`, `q8_0.gguf` and `q4_0.gguf` (made with its own convert and quantize tools).
LLAMA_LIB names its libllama.so, LLAMA_PATH llama-cpp-python and LLAMA_PYTHON a Python that can import it; without them
the peer is left out.

The cap counts the page cache, and is the budget that ours is told; files are dropped from it before each run. 32 tokens
of prompt, then fixed random tokens; the first third warms up. The mixture that learned (_trained.py; WORK/mixture, made
in some minutes) reads text that was held out, and llama.cpp does not know its family. "In memory" both load the whole
model before they begin.

`of the limit` is ours over what the machine could do at best with the bytes that ours read: the longer of reading the
units that were missing from the disk and of reading what wakes from memory, at rates measured before each round.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bench import earlier, median, publish
from _engines import FREE, GIB, Run, Runs, in_turn, make_checkpoint, over_rounds, run_llama, run_ours
from _peer_tables import write_page
from _trained import make_trained

from pragnosia.apps.rates import measured_rates

TRAINED = "mixture"
# name -> (our directory, llama.cpp's file, cap in GiB (0: none), prompt, new tokens, aim)
CASES: dict[str, tuple[str, str, float, int, int, str]] = {
    "bf16, 2 GiB": ("ckpt", "bf16.gguf", 2, 32, 96, "8x"),
    "bf16, 4 GiB": ("ckpt", "bf16.gguf", 4, 32, 160, "3.5x"),
    "int8, 2 GiB": ("int8", "q8_0.gguf", 2, 32, 160, "12x"),
    "int4, in memory": ("int4", "q4_0.gguf", 0, 32, 240, "0.8x"),
    "bf16, in memory": ("ckpt", "bf16.gguf", 0, 32, 120, "1.0x"),
    "bf16, 2 GiB, 512 tokens": ("ckpt", "bf16.gguf", 2, 512, 6, "2x"),
    "a mixture that learned, 0.5 GiB": ("mixture", "", 0.5, 32, 300, "-"),
}


def prepare(work: Path, cases: list[str]) -> None:
    """What is missing and can be made."""
    if any(CASES[case][0] != TRAINED for case in cases):
        make_checkpoint(work / "ckpt")
    if any(CASES[case][0] == TRAINED for case in cases):
        make_trained(work / TRAINED)
    for name in ("int8", "int4"):
        if any(CASES[case][0] == name for case in cases) and not (work / name).is_dir():
            command = [sys.executable, "-m", "pragnosia", "pack", str(work / "ckpt"), str(work / name)]
            subprocess.run([*command, "--format", name], check=True)


def ours(work: Path, case: str) -> Run:
    """One run of ours, with what the machine could do at best beside it."""
    folder, _, cap, prompt, new, _ = CASES[case]
    rates = measured_rates(work / folder)
    found = run_ours(work / folder, int(cap * GIB) or FREE, prompt, new)
    if "awake_bytes" in found and "tokens_per_second" in found:
        reading, thinking = found["bytes_read_per_token"] / rates.disk, found["awake_bytes"] / rates.memory
        found["limit_tokens_per_second"] = 1 / max(reading, thinking)
        found["of_the_limit"] = found["tokens_per_second"] * max(reading, thinking)
    return found


def theirs(work: Path, case: str) -> Run:
    """One run of llama.cpp; empty where it is not there."""
    _, file, cap, prompt, new, _ = CASES[case]
    return run_llama(work / file, int(cap * GIB) or FREE, prompt, new)


def main(work: Path, words: list[str]) -> None:
    """Run every case, ours and theirs in turn; results of other cases in the JSON stay."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    cases = [word for word in words if "=" not in word] or list(CASES)
    prepare(work, cases)
    results = earlier(__file__, "cases")
    for case in cases:
        print(case, flush=True)
        engines = {"ours": lambda case=case: ours(work, case)}
        if CASES[case][1]:
            engines["llama.cpp"] = lambda case=case: theirs(work, case)
        results[case] = {**in_turn(engines, int(given.get("rounds", 3))), "aim": CASES[case][-1]}
    header = ["case", "ours tok/s", "llama.cpp tok/s", "ratio (spread; aim)", "of the limit", "MB read per token"]
    rows = [_row(case, results[case]) for case in CASES if case in results]
    question = "A model larger than memory: decoding beside llama.cpp under one cap"
    publish(question, [*header, "hits", "first token s", "peak MiB"], rows, {"cases": results}, __file__)
    write_page()


def _row(case: str, found: dict[str, list[Run]]) -> list[str]:
    runs: Runs = {name: found[name] for name in ("ours", "llama.cpp") if name in found}
    first = case.endswith("512 tokens")
    values = over_rounds(runs, "seconds_to_first_token" if first else "tokens_per_second")
    pairs = zip(values["ours"], values.get("llama.cpp", []), strict=False)  # a model that no other engine knows
    ratios = [b / a if first else a / b for a, b in pairs]
    ratio = f"{median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f}; {found['aim']})" if ratios else ""
    limits = [one["of_the_limit"] for one in runs["ours"] if "of_the_limit" in one]

    def both(key: str, scale: float, digits: int) -> str:
        measured = over_rounds(runs, key)
        each = (measured.get(name) for name in ("ours", "llama.cpp"))
        return "/".join(f"{median(some) / scale:.{digits}f}" if some else "-" for some in each)

    rates = both("tokens_per_second", 1, 2).split("/")
    limit = f"{median(limits):.0%}" if limits and not first else ""
    reads, hits = both("bytes_read_per_token", 1e6, 0), median([one["hit_rate"] for one in runs["ours"]])
    return [
        case,
        *rates,
        ratio,
        limit,
        reads,
        f"{hits:.2f}",
        both("seconds_to_first_token", 1, 1),
        both("peak_bytes", 1 << 20, 0),
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
