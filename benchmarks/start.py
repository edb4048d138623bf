"""How long does the command line take to say what it can do, and that a command is wrong?"""

from __future__ import annotations

import subprocess
import sys
import time

from _bench import median, publish

COMMANDS = {
    "pragnosia --help": ["--help"],
    "pragnosia train --help": ["train", "--help"],
    "a wrong command": ["generat"],
    "a wrong option": ["generate", "m", "p", "--temprature", "1"],
}


def main(runs: int) -> None:
    """Whole processes, wall seconds."""
    rows, values = [], {}
    for name, arguments in COMMANDS.items():
        seconds = []
        for _ in range(runs):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "pragnosia", *arguments], capture_output=True, check=False)
            seconds.append(time.perf_counter() - started)
        values[name] = {"median": median(seconds), "min": min(seconds), "max": max(seconds)}
        rows.append([name, f"{median(seconds):.2f}", f"{min(seconds):.2f}-{max(seconds):.2f}"])
    publish("Seconds until the command line answers", ["command", "median s", "spread"], rows,
            {"seconds": values, "runs": runs}, __file__)  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
