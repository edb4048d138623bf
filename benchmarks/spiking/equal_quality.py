"""What energy do spikes save at equal quality? Small GRUs beside the spiking layers of rates.py, on the same text.

    python benchmarks/spiking/equal_quality.py [TEXT] [--widths 8 12 16 24 32 48] [--quick]

A GRU reads the same 32 streams of tiny Shakespeare once, in windows of 16 steps, by the same optimiser; the better of
two learning rates is told for each width, as the spiking layer's own rate was chosen, on the tenth that is scored. Its
joules of a character by the same model: every weight but those of other letters is read and multiplied (two operations,
four bytes), every unit's state read and written. What a GRU as good as a spiking layer needs lies between two widths
and is interpolated, in bits against the logarithm of joules.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from _bench import publish
from characters import BEFORE, default_text, numbered
from rates import STEPS, STREAMS
from torch import Tensor, nn

from pragnosia.measure.energy import energy_model
from pragnosia.measure.spiking import PRECISION

RATES = (6e-3, 1.2e-2)
UNIT_OPERATIONS = 16
"""Of a unit and step beside the products: three gates' squashing and the mixture."""


def main() -> None:
    """Every width; beside each spiking layer the GRU that is as good."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("text", nargs="?", type=Path, default=default_text())
    options.add_argument("--widths", nargs="+", type=int, default=[8, 12, 16, 24, 32, 48])
    options.add_argument("--quick", action="store_true", help="20,000 characters, no JSON")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    ids, letters = numbered(chosen.text, 20_000 if chosen.quick else None)
    grus = []
    for width in chosen.widths:
        tried = [learned(ids, letters, width, rate) for rate in RATES]
        grus.append(min(tried, key=lambda one: one["bits_per_character"]) | {"joules": joules(width, letters)})
        print(width, {key: f"{value:.4g}" for key, value in grus[-1].items()}, flush=True)
    spiking = json.loads(Path(__file__).with_name("rates.json").read_text("utf-8"))["prices"]
    header = ["model", "bits per character", "joules per character", "GRU as good, joules", "spikes' over it"]
    rows, beside = [], {}
    for price, layer in spiking.items():
        needed = as_good(grus, layer["bits_per_character"])
        beside[price] = {"gru_joules": needed, "ratio": None if needed is None else layer["joules"] / needed}
        told = ["outside", ""] if needed is None else [f"{needed:.3g}", f"{layer['joules'] / needed:.2f}"]
        rows.append([f"spikes, price {price}", f"{layer['bits_per_character']:.3f}", f"{layer['joules']:.3g}", *told])
    rows += [
        [f"GRU of {one['width']:g}", f"{one['bits_per_character']:.3f}", f"{one['joules']:.3g}", "", ""] for one in grus
    ]
    if chosen.quick:
        print("\n".join("  ".join(row) for row in rows))
        return
    publish("What do spikes save at equal quality?", header, rows, {"grus": grus, "spiking": beside}, __file__)


def as_good(grus: list[dict[str, Any]], bits: float) -> float | None:
    """Joules of a GRU with so many bits; None where all are better or all are worse."""
    for small, large in itertools.pairwise(grus):
        low, high = small["bits_per_character"], large["bits_per_character"]
        if low >= bits >= high:
            share = (low - bits) / (low - high)
            return math.exp((1 - share) * math.log(small["joules"]) + share * math.log(large["joules"]))
    return None


def joules(width: int, letters: int) -> float:
    """Of a character."""
    weights = 3 * width + 3 * width * width + 6 * width + width * letters + letters
    operations = 2 * weights + UNIT_OPERATIONS * width
    return energy_model().estimate(operations, 4 * weights + 8 * (width + letters), PRECISION).joules


class Gru(nn.Module):
    """Letters to logits of the next."""

    def __init__(self, letters: int, width: int) -> None:
        super().__init__()
        self.letters = letters
        self.layer, self.read = nn.GRU(letters, width), nn.Linear(width, letters)

    def forward(self, ids: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        out, state = self.layer(F.one_hot(ids, self.letters).float(), state)
        return self.read(out), state


def learned(ids: Tensor, letters: int, width: int, rate: float) -> dict[str, float]:
    """One GRU, one pass."""
    torch.manual_seed(0)
    model, cut = Gru(letters, width), len(ids) * 9 // 10
    optimiser = torch.optim.Adam(model.parameters(), rate)
    streams = ids[: cut // STREAMS * STREAMS].view(STREAMS, -1).T
    chunks, began, state = (len(streams) - 1) // STEPS, time.process_time(), None
    for number in range(chunks):
        at = number * STEPS
        said, state = model(streams[at : at + STEPS], None if state is None else state.detach())
        loss = F.cross_entropy(said.flatten(0, 1), streams[at + 1 : at + STEPS + 1].flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate * max(0.02, 1 - number / chunks)
        optimiser.step()
    seconds = time.process_time() - began
    bits = scored(model, ids, cut)
    return {"width": width, "rate": rate, "bits_per_character": bits, "seconds": seconds}


@torch.no_grad()
def scored(model: Gru, ids: Tensor, cut: int, rows: int = 16) -> float:
    """Of what follows `cut`, as characters.py scores."""
    length = (len(ids) - 1 - cut) // rows
    places = torch.arange(-BEFORE, length + 1)[:, None] + cut + length * torch.arange(rows)
    said, _ = model(ids[places[:-1]], None)
    after = ids[places[1:]]
    return float(F.cross_entropy(said[BEFORE:].flatten(0, 1), after[BEFORE:].flatten())) / math.log(2)


if __name__ == "__main__":
    main()
