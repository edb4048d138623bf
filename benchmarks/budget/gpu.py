"""A GPU limited to 4 GiB and a checkpoint of 8 GB: how fast does it speak and learn, and what bounds it?

The model is WORK/ckpt, the mixture of random weights in bfloat16. `pragnosia generate` and `pragnosia tune` (adapters
of rank 8, a row of 512 tokens a step) run within --vram 4GiB beside --memory, which holds what the GPU has no room
for. The bound on a token, or a step: what was copied to the GPU, at the rate that this link gave just before.

  gpu.py WORK [memory=12GiB] [vram=4GiB] [tokens=64] [steps=6]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bench import median, publish
from _engines import make_checkpoint
from tune import write_texts

from pragnosia.measure.bandwidth import link_bandwidth, memory_bandwidth

PROMPT = "the quick brown fox"


def asked(words: list[Any]) -> dict[str, Any]:
    """What a command answers."""
    command = [sys.executable, "-m", "pragnosia", *(str(word) for word in words), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Speak, learn, print."""
    if not torch.cuda.is_available():
        print("torch sees no CUDA device; this benchmark needs one")
        return
    work, options = Path(sys.argv[1]), dict(word.split("=") for word in sys.argv[2:])
    memory, vram = options.get("memory", "12GiB"), options.get("vram", "4GiB")
    tokens, steps, folder = int(options.get("tokens", 64)), int(options.get("steps", 6)), work / "ckpt"
    make_checkpoint(folder)
    device = torch.device("cuda")
    link, own = link_bandwidth(device), memory_bandwidth(device)
    budget = ["--memory", memory, "--vram", vram]
    said = asked(["generate", folder, PROMPT, "--max-new-tokens", tokens, "--temperature", 0, *budget])
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        data, out = Path(scratch) / "texts.jsonl", Path(scratch) / "out"
        write_texts(data, 512)
        given = ["--data", data, "--out", out, "--sequence-length", 512, "--steps", steps, "--validation-fraction", 0]
        learned = asked(["tune", folder, *given, *budget])
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    copied = median([later["bytes_copied"] - before["bytes_copied"] for before, later in pairwise(log)])
    seconds = median([line["seconds_per_step"] for line in log[1:]])
    bound = link / max(said["bytes_copied_per_token"], 1)
    rows = [
        [
            "speaking",
            f"{said['tokens_per_second']:.2f} tokens/s",
            f"{bound:.2f} tokens/s",
            f"{said['gpu_hit_rate']:.0%}",
        ],
        ["learning", f"{seconds:.2f} s per step", f"{copied / link:.2f} s per step", f"{learned['gpu_hit_rate']:.0%}"],
    ]
    values = {
        "device": torch.cuda.get_device_name(),
        "budgets": {"memory": memory, "vram": vram},
        "link_bytes_per_second": link,
        "vram_bytes_per_second": own,
        "speaking": said,
        "learning": {**learned, "seconds_per_step": seconds, "bytes_copied_per_step": copied},
    }
    publish("8 GB on a GPU limited to 4 GiB", ["", "measured", "bound", "found on the GPU"], rows, values, __file__)


if __name__ == "__main__":
    main()
