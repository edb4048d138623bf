"""Worker: transformers with its weights offloaded, on the same tokens; prints a line of JSON.

usage: peer_transformers.py WAY MODEL SCRATCH CAP PROMPT NEW, where WAY is

accelerate   device_map="auto": half of CAP may hold weights, the others are copied to SCRATCH and read from there
airllm       AirLLM: layers are split into SCRATCH (once) and pass through memory one by one

Runs in a Python of the peer's own, where nothing of ours is installed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

started = time.perf_counter()

import torch  # noqa: E402
from _tokens import tokens  # noqa: E402


def accelerate(folder: str, scratch: str, cap: int) -> Any:
    """As its documentation has it; more memory for weights leaves too little for reading the others."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        device_map="auto",
        max_memory={"cpu": cap // 2},
        offload_folder=scratch,
    )


def airllm(folder: str, scratch: str, cap: int) -> Any:
    """It asks for no budget: a layer and the next one are in memory."""
    from airllm import AutoModel

    streamed = AutoModel.from_pretrained(
        folder, device="cpu", dtype=torch.bfloat16, layer_shards_saving_path=scratch, prefetching=True
    )
    return streamed.model


WAYS = {"accelerate": accelerate, "airllm": airllm}


@torch.inference_mode()
def main(way: str, folder: str, scratch: str, cap: int, prompt: int, new: int) -> None:
    """Read a prompt, then the given tokens one by one."""
    Path(scratch).mkdir(parents=True, exist_ok=True)
    model = WAYS[way](folder, scratch, cap).eval()
    loaded = time.perf_counter() - started
    given = tokens(prompt + new)
    begun = time.perf_counter()
    output = model(input_ids=torch.tensor([given[:prompt]]), use_cache=True)
    first = time.perf_counter() - begun
    seconds, read = [], [_read()]
    until = time.perf_counter() + float(os.environ.get("MOST_SECONDS", "60"))
    for token in given[prompt:]:
        begun = time.perf_counter()
        output = model(input_ids=torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)
        int(output.logits[0, -1].argmax())
        seconds.append(time.perf_counter() - begun)
        read.append(_read())
        if time.perf_counter() > until:
            break
    warm = len(seconds) // 3
    steady = seconds[warm:]
    result = {
        "tokens_per_second": len(steady) / sum(steady),
        "bytes_read_per_token": (read[-1] - read[warm]) / len(steady),
        "seconds_to_load": loaded,
        "seconds_to_first_token": first,
        "tokens": len(seconds),
        "versions": _versions(way),
    }
    print(json.dumps(result))


def _versions(way: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", way)}


def _read() -> int:
    """Bytes this process fetched from disk."""
    with Path("/proc/self/io").open() as file:
        return next(int(line.split()[1]) for line in file if line.startswith("read_bytes"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], *(int(word) for word in sys.argv[4:7]))
