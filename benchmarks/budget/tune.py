"""Tuning a checkpoint three times larger than memory: seconds per step beside what reading and computing take alone.

The model is WORK/ckpt, the 8 GB mixture of random weights in bfloat16; adapters of rank 8 on attention and on every
unit. A step is a row of random tokens, forward and backward. Under a hard cap of a third of the checkpoint (page cache
counted) `pragnosia tune` keeps to its budget. Reading alone: the bytes a step read, at what this disk gave just before
(direct reads by four threads); computing alone: the same step with the whole model in memory.

  tune.py WORK [tokens=512] [steps=4]

A step passes if it takes at most 1.3 times the larger of the two.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bench import earlier, median, publish
from _capped import capped, forget
from _engines import FREE, make_checkpoint

from pragnosia.measure.bandwidth import measure_speeds

AIM = 1.3


def weights(folder: Path) -> int:
    """Bytes of the checkpoint."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def write_texts(path: Path, tokens: int) -> None:
    """Texts longer than a row, of words that any tokenizer knows some way."""
    draw = random.Random(0)
    words = ["".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(4)) for _ in range(4000)]
    with path.open("w") as file:
        for _ in range(16):
            file.write(json.dumps({"text": " ".join(draw.choice(words) for _ in range(tokens * 2))}) + "\n")


def run(folder: Path, out: Path, data: Path, cap: int, budget: int, tokens: int, steps: int) -> dict[str, Any]:
    """The command line, and what its log says of every step but the first, which begins cold."""
    forget(folder)
    command = [
        *(sys.executable, "-m", "pragnosia", "tune", folder, "--data", data, "--out", out),
        *("--memory", budget, "--sequence-length", tokens, "--steps", steps, "--validation-fraction", 0, "--json"),
    ]
    found = capped([str(word) for word in command], cap, timeout=1200)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    read = [later.get("bytes_read", 0) - before.get("bytes_read", 0) for before, later in pairwise(lines)]
    return found | {"step_seconds": [line["seconds_per_step"] for line in lines[1:]], "step_bytes": median(read)}


def main() -> None:
    """Run the case of so many tokens."""
    work, given = Path(sys.argv[1]), dict(word.split("=") for word in sys.argv[2:])
    tokens, steps = int(given.get("tokens", 512)), int(given.get("steps", 4))
    folder = work / "ckpt"
    make_checkpoint(folder)
    cap = weights(folder) // 3
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        data = Path(scratch) / "texts.jsonl"
        write_texts(data, tokens)
        disk = measure_speeds(folder).disk
        assert disk is not None
        there = run(folder, Path(scratch) / "there", data, cap, cap, tokens, steps)
        here = run(folder, Path(scratch) / "here", data, FREE, FREE, tokens, steps)
    rate = disk.read_bytes_per_second
    seconds, reading, computing = (
        median(there["step_seconds"]),
        there["step_bytes"] / rate,
        median(here["step_seconds"]),
    )
    case = {
        "cap_bytes": cap,
        "checkpoint_bytes": weights(folder),
        "adapter_parameters": there["parameters"],
        "seconds_per_step": seconds,
        "steps": there["step_seconds"],
        "bytes_per_step": there["step_bytes"],
        "disk_bytes_per_second": rate,
        "reading_alone": reading,
        "computing_alone": computing,
        "ratio": seconds / max(reading, computing),
        "hit_rate": there["hit_rate"],
        "peak_bytes": there.get("peak_bytes"),
        "capped": there["capped"],
    }
    cases = earlier(__file__, "cases") | {f"{tokens} tokens": case}
    rows = [
        [name, *(f"{one[key]:.1f}" for key in ("seconds_per_step", "reading_alone", "computing_alone")),
         f"{one['ratio']:.2f}", f"{(one['peak_bytes'] or 0) >> 20} of {one['cap_bytes'] >> 20}"]
        for name, one in cases.items()
    ]  # fmt: skip
    header = ["a step of", "seconds", "reading alone", "computing alone", "ratio", "peak MiB"]
    publish(
        f"tuning 3x larger than the cap (aim: ratio <= {AIM})", header, rows, {"aim": AIM, "cases": cases}, __file__
    )


if __name__ == "__main__":
    main()
