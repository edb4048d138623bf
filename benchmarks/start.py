"""How long does the command line take to say what it can do, that a command is wrong, and to begin to compute?

`generate` is timed from the start of the process to the first byte of computation, a layer that is handed its first
tokens: imports, the plan and loading are behind it. A small mixture is made for it; any directory may be given as well.

    python benchmarks/start.py [RUNS] [--model DIRECTORY --memory 2GiB]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _bench import median, publish

COMMANDS = {
    "pragnosia --help": ["--help"],
    "pragnosia train --help": ["train", "--help"],
    "a wrong command": ["generat"],
    "a wrong option": ["generate", "m", "p", "--temprature", "1"],
}
# The command line as it is; the hook is torch's own, and leaves when the first layer is about to compute.
UNTIL_COMPUTING = """
import os, sys
import torch
from pragnosia.apps.cli import main
def leave(module, given):
    if type(module).__name__.endswith("Layer"):
        os._exit(77)
torch.nn.modules.module.register_module_forward_pre_hook(leave)
main(sys.argv[1:])
"""


def timed(command: list[str]) -> tuple[float, float, int]:
    """Wall and processor seconds of a whole process, and its exit code."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = subprocess.run(command, capture_output=True, check=False).returncode
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, code


def small(folder: Path) -> Path:
    """A mixture of a few megabytes as another library writes it, with a tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=300, hidden_size=128, intermediate_size=256, moe_intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_experts=16, num_experts_per_tok=2,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def main(runs: int, model: Path | None, memory: str) -> None:
    """Whole processes, in turn."""
    with tempfile.TemporaryDirectory() as scratch:
        prompt = ["Once upon a time", "--max-new-tokens", "1", "--json"]
        speaking = {
            "generate, a small mixture, --memory": [str(small(Path(scratch) / "m")), *prompt, "--memory", "1GiB"]
        }
        if model is not None:
            size = sum(file.stat().st_size for file in model.glob("*.safetensors")) / 1e9
            speaking[f"generate, {size:.1f} GB, --memory {memory}"] = [str(model), *prompt, "--memory", memory]
        commands = {name: [sys.executable, "-m", "pragnosia", *given] for name, given in COMMANDS.items()}
        for name, given in speaking.items():
            commands[f"{name}: first computation"] = [sys.executable, "-c", UNTIL_COMPUTING, "generate", *given]
        commands["import torch, for comparison"] = [sys.executable, "-c", "import torch"]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for number in range(runs + 1):
            for name, command in commands.items():
                wall, processor, code = timed(command)
                if name.endswith("computation") and code != 77:
                    raise SystemExit(f"{name}: never came to compute")
                if number:  # the first round fills the disk's cache
                    found[name].append((wall, processor))
    rows, values = [], {}
    for name, pairs in found.items():
        walls, processors = ([pair[which] for pair in pairs] for which in (0, 1))
        values[name] = {
            "median": median(walls), "min": min(walls), "max": max(walls), "processor_median": median(processors),
        }  # fmt: skip
        rows.append([name, f"{median(walls):.2f}", f"{min(walls):.2f}-{max(walls):.2f}", f"{median(processors):.2f}"])
    publish("Seconds until the command line answers, or begins to compute",
            ["command", "median s", "spread", "processor s"], rows,
            {"seconds": values, "runs": runs, "load": os.getloadavg()}, __file__)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="?", type=int, default=10)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--memory", default="2GiB")
    given = parser.parse_args()
    main(given.runs, given.model, given.memory)
