"""A recurrent layer of adaptive spiking neurons on tiny Shakespeare: bits per character under each rule.

    python benchmarks/spiking/characters.py [TEXT] [--quick] [--rules surrogate eprop ...] [--passes 3] [--neurons 400]

One layer (learning/eprop.py), one step a character, at most 250 k weights; 16 streams of the first nine tenths, wishes
every --steps characters, Adam; the state goes on from one to the next, for e-prop the traces too. Scored on the last
tenth in 16 streams, each 200 characters after it began, weights still. An arm is written down as soon as it is there,
and what an earlier run measured stays; --rules asks for some. Time is the processor's, of as many threads as torch
takes. E-prop holds two numbers for each synapse and stream: at 400 neurons a step is some forty times as slow.
"""

from __future__ import annotations

import argparse
import lzma
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from _bench import earlier, publish

from pragnosia.learning.eprop import Cell, State, Weights, eprop, step, surrogate

RULES = ("surrogate", "eprop", "eprop_random", "factorised")
STREAMS = 16
BEFORE = 200
"""Characters that a scored stream hears first."""
TIMES = {"tau_v": 1.0, "tau_a": 50.0, "tau_out": 0.5}
"""[steps]; shorter ones were better: a character is one step."""


def main() -> None:
    """Every rule that was asked for; those of an earlier run stay in the JSON."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("text", nargs="?", type=Path, default=default_text())
    options.add_argument("--quick", action="store_true", help="20,000 characters, 64 neurons, one pass, no JSON")
    options.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    options.add_argument("--passes", type=int, default=3)
    options.add_argument("--neurons", type=int, default=400)
    options.add_argument("--steps", type=int, default=16)
    options.add_argument("--rate", type=float, default=5e-3)
    chosen = options.parse_args()
    if chosen.quick:
        chosen.neurons, chosen.passes, chosen.steps = 64, 1, 16
    ids, letters = numbered(chosen.text, 20_000 if chosen.quick else None)
    found: dict[str, Any] = {} if chosen.quick else dict(_earlier())
    for rule in chosen.rules:
        found[rule] = learned(rule, ids, len(ids) * 9 // 10, letters, chosen)
        print(rule, {key: round(value, 4) for key, value in found[rule].items()}, flush=True)
        if not chosen.quick:
            told(found)


def default_text() -> Path:
    """Tiny Shakespeare."""
    return Path(os.environ.get("PRAGNOSIA_DATA", ".")) / "text_en" / "tinyshakespeare.txt.xz"


def numbered(path: Path, until: int | None) -> tuple[torch.Tensor, int]:
    """A text's characters as numbers, and how many there are."""
    raw = path.read_bytes()
    text = (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode()[:until]
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    return torch.tensor([letters[letter] for letter in text]), len(letters)


def told(found: dict[str, Any]) -> None:
    """The table, and the JSON."""
    names = ("bits_per_character", "spikes_per_neuron", "parameters", "passes", "seconds")
    rows = [[rule, *(f"{arm[name]:.4g}" for name in names)] for rule, arm in found.items()]
    publish("What does a spiking layer learn of tiny Shakespeare?", ["rule", *names], rows, {"rules": found}, __file__)


def _earlier() -> dict[str, Any]:
    return earlier(__file__, "rules") if Path(__file__).with_suffix(".json").exists() else {}


def learned(rule: str, ids: torch.Tensor, cut: int, letters: int, chosen: argparse.Namespace) -> dict[str, float]:
    """One layer, one rule."""
    torch.manual_seed(0)
    neurons, cell = chosen.neurons, Cell(**TIMES, beta=0.1, damp=0.5)
    shapes = ((neurons, letters, 1.0), (neurons, neurons, 0.5 * neurons**-0.5), (letters, neurons, neurons**-0.5))
    weights = Weights(*(torch.randn(a, b) * scale for a, b, scale in shapes))
    feedback = torch.randn(letters, neurons) * neurons**-0.5 if rule == "eprop_random" else None
    streams = ids[: cut // STREAMS * STREAMS].view(STREAMS, -1).T
    optimiser = torch.optim.Adam(list(weights), chosen.rate)
    chunks = (len(streams) - 1) // chosen.steps
    began, carried = time.process_time(), None
    for number in range(chosen.passes * chunks):
        at = number % chunks * chosen.steps
        rows = streams[at : at + chosen.steps + 1]
        x = F.one_hot(rows[:-1], letters).float()
        if rule == "surrogate":
            _, wish, carried = surrogate(weights, x, rows[1:], cell, carried)
        else:
            how = {"feedback": feedback, "factorised": rule == "factorised"}
            _, wish, carried = eprop(weights, x, rows[1:], cell, carried, **how)
        for weight, grad in zip(weights, wish, strict=True):
            weight.grad = grad
        torch.nn.utils.clip_grad_norm_(list(weights), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = chosen.rate * max(0.02, 1 - number / (chosen.passes * chunks))
        optimiser.step()
    seconds = time.process_time() - began
    bits, spikes = scored(weights, ids, cut, cell)
    return {
        "bits_per_character": bits,
        "spikes_per_neuron": spikes,
        "parameters": sum(weight.numel() for weight in weights),
        "passes": chosen.passes,
        "neurons": neurons,
        "steps": chosen.steps,
        "rate": chosen.rate,
        "seconds": seconds,
    }


@torch.no_grad()
def scored(weights: Weights, ids: torch.Tensor, cut: int, cell: Cell) -> tuple[float, float]:
    """Bits per character of what follows `cut`, and spikes of a neuron in a step."""
    length = (len(ids) - 1 - cut) // STREAMS
    begins = cut + length * torch.arange(STREAMS)
    state, nats, spikes = State.silent(weights, STREAMS), 0.0, 0.0
    for at in range(-BEFORE, length):
        now, following = ids[begins + at], ids[begins + at + 1]
        state, _ = step(weights, F.one_hot(now, weights.enter.shape[1]).float(), state, cell)
        if at >= 0:
            nats += float(F.cross_entropy(state.y, following))
            spikes += float(state.z.mean())
    return nats / length / math.log(2), spikes / length


if __name__ == "__main__":
    main()
