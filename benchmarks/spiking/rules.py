"""Rules on the transformer: bits per byte against back-propagation at equal tokens, and memory at its highest.

    python benchmarks/spiking/rules.py [TEXT] [--quick] [--rules backprop ...] [--tokens 2000000] [--rates 1e-3 3e-3]

A dense cortex with a readout of its own, every rule at every rate; each run has a process of its own, whose memory at
its highest (interpreter and libraries included, the same for all) is told. Of the rates the better one is shown. A run
is written down as soon as it is there; asked again, what was measured with as many tokens is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from _bench import earlier, publish

from pragnosia.learning import RULES
from pragnosia.training.trainer import train

SHAPE = {"hidden_size": 256, "num_hidden_layers": 8, "max_position_embeddings": 256, "tie_word_embeddings": False}
PEOPLE = {"attention": {"num_heads": 4, "num_key_value_heads": 4, "head_dim": 64}, "feed_forward": {"width": 768}}


def main() -> None:
    """Every rule, one table; with --one a single run, for ourselves."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("PRAGNOSIA_DATA", ".")) / "text_en" / "tinyshakespeare.txt.xz"
    options.add_argument("text", nargs="?", type=Path, default=default)
    options.add_argument("--quick", action="store_true", help="4,096 tokens, two layers, one rate, no JSON")
    options.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    options.add_argument("--tokens", type=int, default=2_000_000)
    options.add_argument("--rates", nargs="+", type=float, default=[1e-3, 3e-3])
    options.add_argument("--one", nargs=2, metavar=("RULE", "RATE"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.quick:
        chosen.tokens, chosen.rates = 4096, chosen.rates[:1]
    if chosen.one:
        print(json.dumps(run(chosen.text, chosen.one[0], float(chosen.one[1]), chosen.tokens, quick=chosen.quick)))
        return
    tried: dict[str, dict[str, Any]] = {} if chosen.quick else earlier(__file__, "runs")
    for rule in chosen.rules:
        for rate in chosen.rates:
            name = f"{rule}, {chosen.tokens:,} tokens, rate {rate:g}"
            if name not in tried:
                tried[name] = {"rule": rule, "tokens": chosen.tokens, **apart(chosen, rule, rate)}
                told(tried, quick=chosen.quick)


def told(tried: dict[str, dict[str, Any]], *, quick: bool) -> None:
    """The better rate of each rule, and the JSON."""
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for one in sorted(tried.values(), key=lambda one: float(one["bits_per_byte"])):
        best.setdefault((one["rule"], one["tokens"]), one)
    names = ("rule", "tokens", "bits_per_byte", "rate", "peak_mib", "tokens_per_second")
    rows = [[f"{one[key]:.4g}" if isinstance(one[key], float) else one[key] for key in names] for one in best.values()]
    if quick:
        print(*rows[-1])
        return
    values = {"shape": SHAPE | PEOPLE, "runs": tried}
    publish("What does a transformer learn without back-propagation?", list(names), rows, values, __file__)


def apart(chosen: argparse.Namespace, rule: str, rate: float) -> dict[str, Any]:
    """One run in a process of its own."""
    words = [sys.executable, __file__, str(chosen.text), "--tokens", str(chosen.tokens), "--one", rule, str(rate)]
    done = subprocess.run([*words, *(["--quick"] * chosen.quick)], capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def run(text: Path, rule: str, rate: float, tokens: int, *, quick: bool) -> dict[str, Any]:
    """Train, and say what it came to."""
    config = {
        "model": SHAPE | PEOPLE | ({"num_hidden_layers": 2, "hidden_size": 64} if quick else {}),
        "tokenizer": {"vocab_size": 512},
        "data": {"sources": [str(text)], "validation_fraction": 0.1},
        "batch": {"batch_size": 16, "sequence_length": 64 if quick else 256},
        "tokens": tokens,
        "rule": rule,
        "optimiser": {"name": "adamw", "learning_rate": rate},
        "logging": {"tensorboard": False, "curves": False},
        "seed": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        report = train(config, out=Path(folder) / "run")
    return {
        "bits_per_byte": report.bits_per_byte,
        "rate": rate,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "tokens_per_second": report.tokens_per_second,
    }


if __name__ == "__main__":
    main()
