"""How fast does a model larger than its memory speak? Ours beside llama.cpp, each alone under the same hard cap.

usage: decode.py WORK [CASE…]; WORK holds (or gets) the checkpoint `ckpt`, its packed forms `int8` and `int4`, and, for
llama.cpp, `bf16.gguf`, `q8_0.gguf` and `q4_0.gguf` (made with its own convert and quantize tools). LLAMA_LIB names its
libllama.so, LLAMA_PATH llama-cpp-python and LLAMA_PYTHON a Python that can import it; without them the peer
is left out.

The cap counts the page cache; files are dropped from it before each run. 32 tokens of prompt, then fixed random tokens.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bench import earlier, publish
from _engines import FREE, GIB, make_checkpoint, run_llama, run_ours

# name -> (our directory, llama.cpp's file, cap in GiB (0: none), prompt, new tokens, aim)
CASES: dict[str, tuple[str, str, int, int, int, str]] = {
    "bf16, 2 GiB": ("ckpt", "bf16.gguf", 2, 32, 96, "8x"),
    "bf16, 4 GiB": ("ckpt", "bf16.gguf", 4, 32, 160, "3.5x"),
    "int8, 2 GiB": ("int8", "q8_0.gguf", 2, 32, 160, "12x"),
    "int4, in memory": ("int4", "q4_0.gguf", 0, 32, 240, "0.8x"),
    "bf16, in memory": ("ckpt", "bf16.gguf", 0, 32, 120, "1.0x"),
    "bf16, 2 GiB, 512 tokens": ("ckpt", "bf16.gguf", 2, 512, 6, "2x"),
}


def prepare(work: Path) -> None:
    """What is missing and can be made."""
    make_checkpoint(work / "ckpt")
    for name in ("int8", "int4"):
        if not (work / name).is_dir():
            command = [
                sys.executable,
                "-m",
                "pragnosia",
                "pack",
                str(work / "ckpt"),
                str(work / name),
                "--format",
                name,
            ]
            subprocess.run(command, check=True)


def ours(work: Path, case: str) -> dict[str, Any]:
    """One run of ours."""
    folder, _, cap, prompt, new, _ = CASES[case]
    return run_ours(work / folder, cap * GIB or FREE, prompt, new)


def theirs(work: Path, case: str) -> dict[str, Any]:
    """One run of llama.cpp; empty where it is not there."""
    _, file, cap, prompt, new, _ = CASES[case]
    return run_llama(work / file, cap * GIB or FREE, prompt, new)


def main(work: Path, cases: list[str]) -> None:
    """Run every case, ours and theirs in turn; results of other cases in the JSON stay."""
    prepare(work)
    results = earlier(__file__, "cases")
    for case in cases or CASES:
        mine, peer = ours(work, case), theirs(work, case)
        results[case] = {"ours": mine, "llama.cpp": peer, "aim": CASES[case][-1]}
        print(case, json.dumps(results[case]), flush=True)
    rows = [_row(case, found) for case, found in results.items()]
    header = [
        "case",
        "ours tok/s",
        "llama.cpp tok/s",
        "ratio (aim)",
        "MB read per token",
        "hits",
        "first token s",
        "peak MiB",
    ]
    publish(
        "A model larger than memory: decoding beside llama.cpp under one cap",
        header,
        rows,
        {"cases": results},
        __file__,
    )


def _row(case: str, found: dict[str, Any]) -> list[str]:
    mine, peer = found["ours"], found["llama.cpp"]
    first = case.endswith("512 tokens")
    key = "seconds_to_first_token" if first else "tokens_per_second"
    ratio = ""
    if key in mine and key in peer:
        ratio = f"{peer[key] / mine[key] if first else mine[key] / peer[key]:.2f}x ({found['aim']})"
    both = [f"{one['tokens_per_second']:.2f}" if "tokens_per_second" in one else "-" for one in (mine, peer)]
    read = "/".join(f"{one['bytes_read_per_token'] / 1e6:.0f}" for one in (mine, peer) if "bytes_read_per_token" in one)
    firsts = "/".join(f"{one['seconds_to_first_token']:.1f}" for one in (mine, peer) if "seconds_to_first_token" in one)
    peaks = "/".join(f"{one['peak_bytes'] >> 20}" for one in (mine, peer) if "peak_bytes" in one)
    return [case, *both, ratio, read, f"{mine.get('hit_rate', 0):.2f}", firsts, peaks]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
