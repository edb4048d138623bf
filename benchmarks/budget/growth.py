"""What does it cost a model to grow beyond its memory? Ours beside llama.cpp, 2 GiB, checkpoints of 1 to 8 times that.

Every checkpoint has 12 layers of width 2048 and wakes 4 units of a layer; only the number of units grows, so a token
computes the same everywhere and the bytes it has to fetch are the whole difference. bfloat16, hard cap that counts the
page cache, 32 tokens of prompt, then fixed random tokens; `rounds` in turn, median.

usage: growth.py WORK [TIMES…] [rounds=2] [tokens=96]; TIMES of the cap, by default 1 2 4 8. A checkpoint is made in
WORK and deleted once it is measured: 8 times are 17 GB, and as much again for llama.cpp's file. Where the disk has no
room for both, ours runs all its rounds first and the checkpoint becomes llama.cpp's file layer by layer
(gguf_by_layer.py, which wants the gguf library). llama.cpp is left out without LLAMA_PYTHON, LLAMA_LIB and LLAMA_PATH,
as for decode.py, and without LLAMA_CONVERT, its convert_hf_to_gguf.py.

The table goes into docs/budget.md, too (_tables.py).
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
from _bench import earlier, publish
from _engines import GIB, make_checkpoint, run_llama, run_ours
from _peers import large
from _tables import growth, write_page

from pragnosia.measure.accounting import account

CAP, PROMPT, SPARE = 2 * GIB, 32, 4 << 30


def checkpoint_bytes(units: int) -> int:
    """Of bfloat16 weights, with so many units a layer."""
    return 2 * account(large(units=units).ours()).total_parameters


def units_for(times: float) -> int:
    """Units a layer, so that the checkpoint is as near as can be to so many times the cap."""
    each = checkpoint_bytes(5) - checkpoint_bytes(4)
    return round((times * CAP - checkpoint_bytes(4)) / each) + 4


def can_convert() -> bool:
    """Whether llama.cpp's own tool is there."""
    return bool(os.environ.get("LLAMA_CONVERT") and os.environ.get("LLAMA_PYTHON"))


def convert(folder: Path, file: Path) -> None:
    """llama.cpp's file of a checkpoint, by its own tool."""
    command = [*os.environ["LLAMA_PYTHON"].split(), os.environ["LLAMA_CONVERT"], str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.environ.get("LLAMA_PATH", "")}
    words = [*command, "--outfile", str(file), "--outtype", "bf16"]
    subprocess.run(words, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def spend(folder: Path, file: Path) -> None:
    """The same where there is no room for both: the checkpoint goes as the file comes, like a smaller one's."""
    small, like = folder.with_name("growth-small"), folder.with_name("growth-small.gguf")
    try:
        make_checkpoint(small, 12, 4)
        convert(small, like)
        shutil.rmtree(small)
        command = [sys.executable, str(Path(__file__).with_name("gguf_by_layer.py")), *map(str, (like, folder, file))]
        subprocess.run(command, check=True)
    finally:
        shutil.rmtree(small, ignore_errors=True)
        like.unlink(missing_ok=True)


def measure(work: Path, times: float, rounds: int, new: int) -> dict[str, Any]:
    """One size."""
    folder, file, units = work / f"growth{times:g}", work / f"growth{times:g}.gguf", units_for(times)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "llama.cpp": []}
    try:
        make_checkpoint(folder, 12, units)
        both = shutil.disk_usage(work).free > checkpoint_bytes(units) + SPARE
        if can_convert() and both:
            convert(folder, file)
        for _ in range(rounds):
            runs["ours"].append(run_ours(folder, CAP, PROMPT, new))
            print(f"{times:g}x ours", json.dumps(runs["ours"][-1]), flush=True)
            if file.is_file():
                runs["llama.cpp"].append(run_llama(file, CAP, PROMPT, new))
                print(f"{times:g}x llama.cpp", json.dumps(runs["llama.cpp"][-1]), flush=True)
        if can_convert() and not both:
            spend(folder, file)
            runs["llama.cpp"] = [run_llama(file, CAP, PROMPT, new) for _ in range(rounds)]
            print(f"{times:g}x llama.cpp", json.dumps(runs["llama.cpp"]), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        file.unlink(missing_ok=True)
    return {"bytes": checkpoint_bytes(units), "units": 12 * units, "in_turn": both, **runs}


def main(work: Path, words: list[str]) -> None:
    """Measure each size; results of other sizes in the JSON stay."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    sizes = [float(word) for word in words if "=" not in word] or [1.0, 2.0, 4.0, 8.0]
    rounds, new = int(given.get("rounds", 2)), int(given.get("tokens", 96))
    for times in sizes:  # written down as they come: the largest take long
        results = earlier(__file__, "sizes") | {f"{times:g}": measure(work, times, rounds, new)}
        results = dict(sorted(results.items(), key=lambda one: float(one[0])))
        values = {"sizes": results, "cap": CAP}
        publish("A model that grows beyond its memory", *growth(values), values, __file__)
    write_page()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
