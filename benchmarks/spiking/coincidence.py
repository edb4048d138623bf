"""One-pass learning on tiny Shakespeare: bits per character and characters a second, beside n-grams and a GRU.

    python benchmarks/spiking/coincidence.py [TEXT] [--quick] [--gru SECONDS]

Every arm learns the first nine tenths of the text once (the GRU for --gru seconds of processor time, 160 unless said
otherwise, over and over) and is then scored on the last tenth: `still` with what it learned by then, `learning` while
it goes on learning from each character after it was scored. `code length` is the mean over the nine tenths of what was
said of each character before it was learned. One thread, processor time. Characters are bytes: the text is ASCII.
"""

from __future__ import annotations

import argparse
import lzma
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from _bench import publish

from pragnosia.data import Texts, load_tokenizer, train_tokenizer
from pragnosia.learning.coincidence import Bytes, learn_text, score_text, sprout
from pragnosia.model.coincidence import CoincidenceConfig

NATS = math.log(2)


def main() -> None:
    """Every arm, one table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("PRAGNOSIA_DATA", ".")) / "text_en" / "tinyshakespeare.txt.xz"
    options.add_argument("text", nargs="?", type=Path, default=default)
    options.add_argument("--quick", action="store_true", help="the first 60,000 characters, a GRU of five seconds")
    options.add_argument("--gru", type=float, default=160.0)
    options.add_argument("--rounds", type=int, default=3, help="of the one-pass learner; the median speed is told")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    raw = chosen.text.read_bytes()
    text = (lzma.decompress(raw) if chosen.text.suffix == ".xz" else raw).decode()[: 60_000 if chosen.quick else None]
    cut = len(text) * 9 // 10
    found = {"coincidence": coincidence(text, cut, chosen.rounds)}
    for order in (4, 5):
        found[f"n-gram of order {order}, Kneser-Ney"] = kneser_ney(text, cut, order)
    found["GRU, 160 k parameters"] = gru(text, cut, 5.0 if chosen.quick else chosen.gru)
    header = ["learner", "still", "learning", "code length", "seconds", "characters/s"]
    names = ("still", "learning", "code_length", "seconds", "characters_per_second")
    rows = [[name, *(_shown(arm.get(key)) for key in names)] for name, arm in found.items()]
    if chosen.quick:
        print("\n".join("  ".join(map(str, row)) for row in [header, *rows]))
        return
    values = {"text": chosen.text.name, "learned": cut, "scored": len(text) - cut, "arms": found}
    publish("What does one pass over tiny Shakespeare teach? Bits per character", header, rows, values, __file__)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value > 1000 else f"{value:.3f}"


def coincidence(text: str, cut: int, rounds: int) -> dict[str, Any]:
    """Ours. The count of characters that shapes its tree is part of the time."""
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer([Texts(["bytes"])], 260, folder)
        alphabet = Bytes(load_tokenizer(folder))
    ids = alphabet.encode(text)
    learn_text(sprout(CoincidenceConfig(), alphabet, [ids]), ids[:100])  # compiled by then
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        model = sprout(CoincidenceConfig(), alphabet, [ids[:cut]])
        said, _ = learn_text(model, ids[:cut])
        seconds.append(time.process_time() - began)
    still = score_text(model, ids[cut:])
    learning, _ = learn_text(model, ids[cut:])
    typical = statistics.median(seconds)
    return {
        "still": -float(still.double().mean()) / NATS,
        "learning": -float(learning.double().mean()) / NATS,
        "code_length": -float(said.double().mean()) / NATS,
        "seconds": typical,
        "characters_per_second": cut / typical,
        "bytes": sum(table.nbytes for table in model.state_dict().values()),
    }


class KneserNey:
    """Interpolated Kneser-Ney with one discount (Chen and Goodman 1998, section 2.7): lower orders count continuations.

    Counts are raised one character at a time, so that it can go on learning too.
    """

    def __init__(self, order: int, alphabet: int, discount: float = 0.75) -> None:
        self.order, self.alphabet, self.discount = order, alphabet, discount
        self.counts: list[dict[str, dict[str, int]]] = [{} for _ in range(order + 1)]
        self.totals: list[dict[str, int]] = [{} for _ in range(order + 1)]

    def learn(self, past: str, character: str) -> None:
        """A pattern counts in a lower order only where it is new in the one above."""
        for length in range(min(self.order, len(past)), -1, -1):
            context = past[len(past) - length :]
            row = self.counts[length].setdefault(context, {})
            row[character] = row.get(character, 0) + 1
            self.totals[length][context] = self.totals[length].get(context, 0) + 1
            if row[character] > 1:
                return

    def probability(self, past: str, character: str) -> float:
        """From the uniform up."""
        p = 1 / self.alphabet
        for length in range(min(self.order, len(past)) + 1):
            context = past[len(past) - length :]
            row = self.counts[length].get(context)
            if row is None:
                return p
            total = self.totals[length][context]
            p = (max(row.get(character, 0) - self.discount, 0) + self.discount * len(row) * p) / total
        return p


def kneser_ney(text: str, cut: int, order: int) -> dict[str, Any]:
    """Plain Python, so its speed says nothing."""
    model, nats = KneserNey(order, len(set(text))), {"code_length": 0.0, "still": 0.0, "learning": 0.0}
    began = time.process_time()
    for at, character in enumerate(text[:cut]):
        past = text[max(0, at - order) : at]
        nats["code_length"] -= math.log(model.probability(past, character))
        model.learn(past, character)
    seconds = time.process_time() - began
    for name in ("still", "learning"):
        for at in range(cut, len(text)):
            past = text[at - order : at]
            nats[name] -= math.log(model.probability(past, text[at]))
            if name == "learning":
                model.learn(past, text[at])
    held = len(text) - cut
    told = {name: value / NATS / (cut if name == "code_length" else held) for name, value in nats.items()}
    return told | {"seconds": seconds}


class Gru(nn.Module):
    """One layer of 192 over one-hot characters, and a linear readout."""

    def __init__(self, alphabet: int, width: int = 192) -> None:
        super().__init__()
        self.alphabet = alphabet
        self.cell, self.readout = nn.GRU(alphabet, width, batch_first=True), nn.Linear(width, alphabet)

    def forward(self, ids: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        hidden, state = self.cell(F.one_hot(ids, self.alphabet).float(), state)
        return self.readout(hidden), state


def gru(text: str, cut: int, allowed: float) -> dict[str, Any]:
    """Truncated back-propagation over 64 characters of 32 streams, Adam, until the time is up; the state goes on."""
    torch.manual_seed(0)
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    ids = torch.tensor([letters[letter] for letter in text])
    streams = ids[: cut // 32 * 32].view(32, -1)
    model = Gru(len(letters))
    optimiser = torch.optim.Adam(model.parameters(), 4e-3)
    began, steps, at, state = time.process_time(), 0, 0, None
    while (spent := time.process_time() - began) < allowed:
        if at + 65 > streams.shape[1]:
            at, state = 0, None
        for group in optimiser.param_groups:
            group["lr"] = 4e-3 * max(0.02, 1 - spent / allowed)
        rows = streams[:, at : at + 65]
        logits, state = model(rows[:, :-1], state)
        state = state.detach()
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        steps, at = steps + 1, at + 64
    with torch.no_grad():
        _, state = model(ids[cut - 500 : cut - 1][None])
        logits, _ = model(ids[cut - 1 : -1][None], state)
        still = F.cross_entropy(logits[0], ids[cut:])
    return {
        "still": float(still) / NATS,
        "seconds": spent,
        "characters_per_second": steps * 32 * 64 / spent,
        "passes": steps * 32 * 64 / cut,
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }


if __name__ == "__main__":
    main()
