"""What does configs/neurogen-lines.yaml know of tiny Shakespeare, trained and scored from the command line?

    python benchmarks/spiking/lines.py [TEXT] [--rules surrogate eprop delta] [--seeds 3] [--threads 1] [--quick]

    pragnosia train configs/neurogen-lines.yaml --rule RULE --data NINE-TENTHS --set data.validation_fraction=0
    pragnosia eval RUN --data LAST-TENTH

Nothing is held out of the nine tenths: their end is the play in which the last tenth begins. A character is a byte.
Passes and the share of silenced neurons were chosen by runs of seed 0 that were scored on the same last tenth. Runs
that an earlier call made stay in the JSON.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from _bench import earlier, publish

CONFIG = Path(__file__).parents[2] / "configs" / "neurogen-lines.yaml"
RULES = {
    "surrogate": ["steps=9800"],
    "eprop": ["steps=3920", "model.dropout=0.1"],
    "delta": ["steps=1960", "model.dropout=0", "model.line_fading=0.5"],
}
"""What is set beside the file: 1,960 steps of 512 bytes are a pass."""


def main() -> None:
    """Every rule, seed by seed; what is there is written down after each."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("text", nargs="?", type=Path, default=default_text())
    options.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--quick", action="store_true", help="one seed, 20 steps, no JSON")
    chosen = options.parse_args()
    raw = chosen.text.read_bytes()
    text = (lzma.decompress(raw) if chosen.text.suffix == ".xz" else raw).decode()
    assert text.isascii(), "characters would not be bytes"
    found = {} if chosen.quick else earlier(__file__, "runs")
    with tempfile.TemporaryDirectory() as folder:
        for name, part in (("learn", text[: len(text) * 9 // 10]), ("test", text[len(text) * 9 // 10 :])):
            (Path(folder) / f"{name}.txt").write_text(part, "utf-8")
        for seed in range(1 if chosen.quick else chosen.seeds):
            for rule in chosen.rules:
                if (name := f"{rule}, seed {seed}") not in found:
                    found[name] = one_run(rule, seed, Path(folder), chosen)
                    print(name, found[name], flush=True)
                    if not chosen.quick:
                        told(found)
    if not chosen.quick:
        told(found)


def default_text() -> Path:
    """Tiny Shakespeare."""
    return Path(os.environ.get("PRAGNOSIA_DATA", ".")) / "text_en" / "tinyshakespeare.txt.xz"


def one_run(rule: str, seed: int, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Trained and scored as a user would."""
    run = folder / f"{rule}-{seed}"
    sets = [*RULES[rule], f"seed={seed}", "data.validation_fraction=0", *(["steps=20"] if chosen.quick else [])]
    told = pragnosia(
        *("train", CONFIG, "--rule", rule, "--data", folder / "learn.txt", "--out", run),
        *(word for one in sets for word in ("--set", one)),
        threads=chosen.threads,
    )
    scored = pragnosia("eval", run, "--data", folder / "test.txt", threads=chosen.threads)
    return {
        "rule": rule,
        "seed": seed,
        "set": sets,
        "threads": chosen.threads,
        "learned_tokens": told["tokens"],
        "learning_seconds": told["seconds"],
        "bits_per_character": scored["bits_per_byte"],
        "accuracy": scored["next_token_accuracy"],
        "spikes_per_token": scored["spikes_per_token"],
    }


def pragnosia(*words: object, threads: int) -> dict[str, Any]:
    """What a command answers with --json."""
    command = [sys.executable, "-m", "pragnosia", *map(str, words), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def told(found: dict[str, Any]) -> None:
    """Each rule over its seeds, and the JSON of all."""
    rows = []
    for rule in RULES:
        if runs := [one for one in found.values() if one["rule"] == rule]:
            bits = [one["bits_per_character"] for one in runs]
            rows.append(
                [
                    rule,
                    len(runs),
                    f"{statistics.mean(bits):.3f} ({min(bits):.3f}-{max(bits):.3f})",
                    f"{100 * statistics.mean(one['accuracy'] for one in runs):.1f} %",
                    f"{statistics.mean(one['learned_tokens'] for one in runs):,.0f}",
                    f"{statistics.median(one['learning_seconds'] for one in runs):.0f}",
                ]
            )
    header = ["rule", "seeds", "bits per character", "next one", "bytes read", "seconds"]
    question = "What do spiking neurons behind delay lines know of tiny Shakespeare?"
    publish(question, header, rows, {"runs": found}, __file__)


if __name__ == "__main__":
    main()
