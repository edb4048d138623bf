"""What does it cost a model to grow beyond its memory? Ours beside llama.cpp, 2 GiB, checkpoints of 1 to 8 times that.

Every checkpoint has 12 layers of width 2048 and wakes 4 units of a layer; only the number of units grows, so a token
computes the same everywhere and the bytes it has to fetch are the whole difference. bfloat16, hard cap that counts the
page cache, 32 tokens of prompt, then fixed random tokens; `rounds` in turn, median.

usage: growth.py WORK [TIMES…] [rounds=2] [tokens=96]; TIMES of the cap, by default 1 2 4 8. A checkpoint is made in
WORK and deleted once it is measured: 8 times are 17 GB, and as much again for llama.cpp's file. llama.cpp is left out
without LLAMA_PYTHON, LLAMA_LIB and LLAMA_PATH, as for decode.py, and without LLAMA_CONVERT, its convert_hf_to_gguf.py;
also where its file would leave less than 4 GB of the disk free.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bench import earlier, median, publish
from _engines import GIB, make_checkpoint, run_llama, run_ours
from _peers import large

from pragnosia.measure.accounting import account

CAP, PROMPT, SPARE = 2 * GIB, 32, 4 << 30


def checkpoint_bytes(units: int) -> int:
    """Of bfloat16 weights, with so many units a layer."""
    return 2 * account(large(units=units).ours()).total_parameters


def units_for(times: float) -> int:
    """Units a layer, so that the checkpoint is as near as can be to so many times the cap."""
    each = checkpoint_bytes(5) - checkpoint_bytes(4)
    return round((times * CAP - checkpoint_bytes(4)) / each) + 4


def convert(folder: Path, file: Path) -> None:
    """llama.cpp's file of a checkpoint, by its own tool; nothing where it has no place or there is no tool."""
    tool, python = os.environ.get("LLAMA_CONVERT"), os.environ.get("LLAMA_PYTHON")
    if not tool or not python:
        return
    needed = sum(part.stat().st_size for part in folder.glob("*.safetensors")) + SPARE
    if shutil.disk_usage(folder).free < needed:
        print(f"{file.name}: left out, it takes {needed / 1e9:.0f} GB of free disk", flush=True)
        return
    command = [*python.split(), tool, str(folder), "--outfile", str(file), "--outtype", "bf16"]
    environment = {**os.environ, "PYTHONPATH": os.environ.get("LLAMA_PATH", "")}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(work: Path, times: float, rounds: int, new: int) -> dict[str, Any]:
    """One size."""
    folder, file, units = work / f"growth{times:g}", work / f"growth{times:g}.gguf", units_for(times)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "llama.cpp": []}
    try:
        make_checkpoint(folder, 12, units)
        convert(folder, file)
        for _ in range(rounds):
            runs["ours"].append(run_ours(folder, CAP, PROMPT, new))
            if file.is_file():
                runs["llama.cpp"].append(run_llama(file, CAP, PROMPT, new))
            print(f"{times:g}x", json.dumps({name: found[-1:] for name, found in runs.items()}), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        file.unlink(missing_ok=True)
    return {"bytes": checkpoint_bytes(units), "units": 12 * units, **runs}


def main(work: Path, words: list[str]) -> None:
    """Measure each size; results of other sizes in the JSON stay."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    sizes = [float(word) for word in words if "=" not in word] or [1.0, 2.0, 4.0, 8.0]
    rounds, new = int(given.get("rounds", 2)), int(given.get("tokens", 96))
    measured = {f"{times:g}": measure(work, times, rounds, new) for times in sizes}
    results = dict(sorted((earlier(__file__, "sizes") | measured).items(), key=lambda one: float(one[0])))
    header = ["GB", "of 2 GiB", "cached", "ours tok/s", "llama.cpp tok/s", "ratio", "MB read per token", "hits"]
    rows = [_row(times, found) for times, found in results.items()]
    publish("A model that grows beyond its memory", header, rows, {"sizes": results, "cap": CAP}, __file__)


def _row(times: str, found: dict[str, Any]) -> list[str]:
    def middle(engine: str, key: str) -> float | None:
        values = [one[key] for one in found[engine] if key in one]
        return median(values) if values else None

    def told(value: float | None, scale: float = 1, digits: int = 2) -> str:
        return "-" if value is None else f"{value / scale:.{digits}f}"

    mine, peer = (middle(engine, "tokens_per_second") for engine in ("ours", "llama.cpp"))
    slots = middle("ours", "slots")
    reads = "/".join(told(middle(engine, "bytes_read_per_token"), 1e6, 0) for engine in ("ours", "llama.cpp"))
    return [
        f"{found['bytes'] / 1e9:.2f}",
        f"{float(times):g}x",
        "-" if slots is None else f"{slots / found['units']:.0%}",
        told(mine),
        told(peer),
        f"{mine / peer:.1f}x" if mine and peer else "-",
        reads,
        told(middle("ours", "hit_rate")),
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
