"""What do the full NeuroGen regions know of English, beside their own decoder alone and beside a GRU?

    python benchmarks/spiking/neurogen.py [--seeds 3] [--bytes 128000] [--quick]

The model of configs/neurogen-full.yaml: 39,424 neurons that stay as their seed wires them, and a readout that learns.
All arms read the same bytes of the English books once, eight streams side by side, and are scored on the held-out file:

    regions        the readout hears the traces of all regions
    thalamus       the same run, of which only the thalamus is read: what the regions behind it add
    decoder        all regions lesioned: the readout hears traces of the currents that tokens are, with the same codes
    gru            token codes of 64 numbers, one GRU, a linear readout; as many trained parameters as `regions`

Adam at each of an arm's rates, falling linearly to a fiftieth; a step for every 16 tokens of the eight streams, states
carried from step to step. The spikes of the regions do not depend on what the readout has learned: they are computed
once for all rates. The rate with the least mean of bits per byte over the seeds is told, for every arm; it is chosen on
the bytes that are told, for all arms alike. Bits per byte are those of the next byte among 260 tokens.
"""

from __future__ import annotations

import argparse
import lzma
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from _bench import earlier, publish
from torch import Tensor, nn

from pragnosia.spiking.neurogen import NeuroGenForCausalLM
from pragnosia.spiking.voice import Readout, traced
from pragnosia.training.assembly import shape_of
from pragnosia.training.configuration import read_config

CONFIG = Path(__file__).parents[2] / "configs" / "neurogen-full.yaml"
LEARNED, HELD_OUT = "books_pd.train.txt.xz", "books_pd.valid.txt.xz"
RATES = {
    "regions": (3e-3, 1e-2, 3e-2),
    "thalamus": (1e-3, 3e-3, 1e-2),
    "decoder": (1e-3, 3e-3, 1e-2),
    "gru": (1e-3, 3e-3),  # at 1e-2 far worse, of 16,000 and of 128,000 bytes
}
STREAMS, LENGTH, BEFORE = 8, 16, 16
"""Rows, tokens of a step; so many of each row are heard before the first that is scored."""


@dataclass
class Pupil:
    """Something that learns at one rate: `hear` gives logits (T, B, V) of a step, its state being its own business."""

    arm: str
    rate: float
    weights: list[nn.Parameter]
    hear: Callable[[Any], Tensor]
    forget: Callable[[], None]
    nats: float = 0.0
    hits: int = 0
    scored: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.Adam(self.weights, self.rate)

    def learn(self, given: Any, after: Tensor, left: float) -> float:
        """One step; `left` of the rate is left."""
        began = time.process_time()
        loss = F.cross_entropy(self.hear(given).flatten(0, 1), after.flatten())
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * max(0.02, left)
        self.optimiser.step()
        self.seconds += time.process_time() - began
        return float(loss.detach())

    @torch.no_grad()
    def score(self, given: Any, after: Tensor, skip: int) -> None:
        """Of what comes behind the first `skip` tokens."""
        chances = self.hear(given)[skip:].log_softmax(-1)
        after = after[skip:]
        self.nats -= float(chances.gather(-1, after[..., None]).double().sum())
        self.hits += int((chances.argmax(-1) == after).sum())
        self.scored += after.numel()


def main() -> None:
    """Every seed; what is there is written down after each."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--bytes", type=int, default=128_000)
    options.add_argument("--held-out", type=int, default=3_200)
    options.add_argument("--quick", action="store_true", help="one seed, 512 bytes, no JSON")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    if chosen.quick:
        chosen.seeds, chosen.bytes, chosen.held_out = 1, 512, 512
    found: dict[str, Any] = {}
    if not chosen.quick and Path(__file__).with_suffix(".json").exists():
        found = earlier(__file__, "seeds")
    for seed in range(chosen.seeds):
        name = f"seed {seed}, {chosen.bytes:,} bytes"
        if name not in found:
            found[name] = one_seed(seed, chosen)
        told(found, chosen.bytes, quick=chosen.quick)


def one_seed(seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """All arms at all rates on the same bytes."""
    torch.manual_seed(seed)
    config = read_config(CONFIG)
    shape: Any = shape_of(config)
    shape.brain = {**shape.brain, "seed": seed}
    mind = NeuroGenForCausalLM(shape).eval()
    vocabulary, rank = int(shape.vocab_size), int(shape.rank)
    pupils = [
        make(mind, rate, vocabulary, rank)
        for make in (regions, thalamus, decoder, gru)
        for rate in RATES[make.__name__]
        if torch.manual_seed(seed)
    ]
    fired, seconds = 0.0, 0.0
    for path, size in ((LEARNED, chosen.bytes), (HELD_OUT, chosen.held_out)):
        rows, state = streams(path, size), mind.begin(STREAMS)
        learning = path == LEARNED
        for pupil in pupils:
            pupil.forget()
        steps = (rows.shape[1] - 1) // LENGTH
        for number in range(steps):
            ids = rows[:, number * LENGTH : (number + 1) * LENGTH]
            after = rows[:, number * LENGTH + 1 : (number + 1) * LENGTH + 1].T
            began = time.process_time()
            with torch.no_grad():
                heard = mind.hear(ids, state)
                currents = mind.currents(ids) / mind.circuit.thresholds(shape.into)
            seconds += time.process_time() - began
            state, fired = heard.state, fired + float(heard.mean)
            given = {"heard": heard, "currents": currents, "ids": ids, "span": mind.circuit.span("thalamus")}
            for pupil in pupils:
                if learning:
                    loss = pupil.learn(given, after, 1 - number / steps)
                else:
                    pupil.score(given, after, BEFORE if number == 0 else 0)
            if learning and number % 50 == 0:
                print(f"seed {seed}, step {number} of {steps}: {loss / math.log(2):.3f} bits (gru)", flush=True)
    return {
        "arms": [
            {
                "arm": one.arm,
                "rate": one.rate,
                "bits_per_byte": one.nats / math.log(2) / one.scored,
                "accuracy": one.hits / one.scored,
                "trained_parameters": sum(weight.numel() for weight in one.weights),
                "learning_seconds": one.seconds,
            }
            for one in pupils
        ],
        "hearing_seconds": seconds,
        "scored": pupils[0].scored,
    }


def streams(name: str, size: int) -> Tensor:
    """(STREAMS, size / STREAMS) bytes from as many places of the file, evenly spaced."""
    folder = Path(os.environ.get("PRAGNOSIA_DATA", ".")) / "text_en"
    with lzma.open(folder / name) as file:
        text = bytearray(file.read(8_000_000))
    each = size // STREAMS
    apart = (len(text) - each - 1) // (STREAMS - 1)
    parts = [text[at * apart : at * apart + each + 1] for at in range(STREAMS)]
    return torch.stack([torch.frombuffer(part, dtype=torch.uint8).long() for part in parts])


def _reading(arm: str, mind: Any, rate: float, read: Readout, hear: Callable[[Any, Tensor], Any]) -> Pupil:
    for name, weight in read.named_parameters():
        deviation = {"down": read.features**-0.5 / read.gain, "up": read.up.shape[1] ** -0.5, "bias": 0.0}[name]
        nn.init.normal_(weight, std=deviation)
    carried: dict[str, Tensor] = {}

    def step(given: Any) -> Tensor:
        logits, carried["traces"] = hear(given, carried.get("traces"))
        return logits

    return Pupil(arm, rate, list(read.parameters()), step, carried.clear)


def regions(mind: Any, rate: float, vocabulary: int, rank: int) -> Pupil:
    """All of them."""
    return _heard("regions", mind, rate, vocabulary, rank, None)


def thalamus(mind: Any, rate: float, vocabulary: int, rank: int) -> Pupil:
    """The first alone."""
    return _heard("thalamus", mind, rate, vocabulary, rank, mind.circuit.span("thalamus"))


def _heard(arm: str, mind: Any, rate: float, vocabulary: int, rank: int, span: slice | None) -> Pupil:
    neurons = mind.brain.num_neurons if span is None else span.stop - span.start
    read = Readout(vocabulary, neurons * len(mind.kappas), rank)

    def hear(given: Any, before: Any) -> Any:
        fires = given["heard"].fires if span is None else given["heard"].fires.among([span])
        traces = torch.zeros(len(mind.kappas), STREAMS, neurons) if before is None else before
        assert read.down is not None
        parts = list(zip(mind.kappas, traces, read.down.detach().split(neurons), strict=True))
        codes = torch.stack([read.gain * (one @ rows) for _, one, rows in parts])
        told, _ = read.events(fires, codes, mind.kappas)
        last = [fires.faded(kappa).add_(one, alpha=kappa**fires.tokens) for kappa, one, _ in parts]
        return read.say(told), torch.stack(last)

    return _reading(arm, mind, rate, read, hear)


def decoder(mind: Any, rate: float, vocabulary: int, rank: int) -> Pupil:
    """Currents in the place of spikes: their traces, and the same kind of readout."""
    neurons = mind.enter.spread.shape[1]
    read = Readout(vocabulary, neurons * len(mind.kappas), rank)

    def hear(given: Any, before: Any) -> Any:
        begun = torch.zeros(len(mind.kappas), STREAMS, neurons) if before is None else before
        traces, last = traced(given["currents"], begun, mind.kappas)
        return read(traces), last

    return _reading("decoder", mind, rate, read, hear)


def gru(mind: Any, rate: float, vocabulary: int, rank: int) -> Pupil:
    """As many parameters as the readout of all regions has."""
    wanted = mind.brain.num_neurons * len(mind.kappas) * rank + vocabulary * (rank + 1)
    # 3 h (h + rank + 2) + vocabulary (h + 1 + rank) = wanted
    b = 3 * (rank + 2) + vocabulary
    width = int((-b + math.sqrt(b * b + 12 * (wanted - vocabulary * (1 + rank)))) / 6)
    codes, layer, read = nn.Embedding(vocabulary, rank), nn.GRU(rank, width), nn.Linear(width, vocabulary)
    carried: dict[str, Tensor] = {}

    def hear(given: Any) -> Tensor:
        out, last = layer(codes(given["ids"].T), carried.get("state"))
        carried["state"] = last.detach()
        told: Tensor = read(out)
        return told

    weights = [weight for part in (codes, layer, read) for weight in part.parameters()]
    return Pupil("gru", rate, weights, hear, carried.clear)


def told(found: dict[str, Any], size: int, *, quick: bool) -> None:
    """Each arm at the rate that was best for it, of runs of so many bytes; and the JSON of all."""
    rows, alike = [], [one for name, one in found.items() if name.endswith(f" {size:,} bytes")]
    for arm in RATES:
        by_rate: dict[float, list[dict[str, Any]]] = {}
        for one in alike:
            for entry in one["arms"]:
                if entry["arm"] == arm:
                    by_rate.setdefault(entry["rate"], []).append(entry)
        rate = min(by_rate, key=lambda rate: statistics.mean(entry["bits_per_byte"] for entry in by_rate[rate]))
        best = by_rate[rate]
        bits, hits = ([entry[key] for entry in best] for key in ("bits_per_byte", "accuracy"))
        rows.append(
            [
                arm,
                f"{best[0]['trained_parameters']:,}",
                f"{rate:g}",
                f"{statistics.mean(bits):.3f} ({min(bits):.3f}-{max(bits):.3f})",
                f"{100 * statistics.mean(hits):.1f} % ({100 * min(hits):.1f}-{100 * max(hits):.1f})",
            ]
        )
    header = ["arm", "trained parameters", "rate", f"bits per byte, {len(alike)} seeds", "next byte"]
    if quick:
        print("\n".join("  ".join(row) for row in [header, *rows]))
        return
    publish("What do the full regions know of English?", header, rows, {"seeds": found}, __file__)


if __name__ == "__main__":
    main()
