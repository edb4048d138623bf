"""Is a character known again that was seen once? 20-way one-shot by the episodic store's nearest neighbour.

Characters are drawn by 20 hands each. An encoder (four layers of convolution) learns on background alphabets alone, as
a prototypical network does: in episodes of 20 characters the mean key of some drawings is to be nearest to others'.
Then 20 characters of an alphabet it never saw are written into an episodic store (pragnosia.store), each once, drawn by
one hand, no gradient; another hand's drawings are asked for by `Neighbours`. Beside it, in the same trials and the same
store: pixels as keys (blurred or not), and the encoder before it learned.

Two ways to draw a trial: 20 characters of one alphabet (harder; Lake et al. 2015), or of all held-out alphabets (as
Vinyals et al. 2016). The data are Omniglot's two minimal background sets together (eight alphabets, 242 characters, at
images/omniglot_images_background_small*.zip under PRAGNOSIA_DATA), not the 50 alphabets of the published figures: each
seed trains on five or six of them, and the rest is asked. Three seeds hold out other alphabets.

    python benchmarks/memory/omniglot.py [--seeds 3] [--episodes 400] [--trials 100]
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _bench import publish

from pragnosia.store.episode import Episode
from pragnosia.store.episodes import LIMIT, EpisodicStore
from pragnosia.store.neighbours import Neighbours
from pragnosia.store.opening import Header

FILES = [f"images/omniglot_images_background_small{number}.zip" for number in (1, 2)]
HELD_OUT = [("Korean", "Tagalog"), ("Balinese", "Early_Aramaic", "Sanskrit"), ("Japanese_(katakana)", "Greek")]
SIDE, WAYS, HANDS = 28, 20, 20
Keys = Callable[[Tensor], Tensor]
Alphabet = Tensor
"""(characters, hands, SIDE, SIDE), ink 1 on 0."""
PUBLISHED = {  # as later work and replications quote these tables; the papers themselves were not at hand
    "within an alphabet, 30 background alphabets (Koch et al. 2015, table 2)": {
        "1-nearest neighbour on pixels": 0.217,
        "siamese network": 0.920,
        "Bayesian programs (Lake et al.)": 0.952,
        "people": 0.955,
    },
    "among all characters, 1,200 background characters, turned ones added (Vinyals et al. 2016, table 1)": {
        "matching networks": 0.938,
    },
    "the same (Snell et al. 2017, table 1)": {"prototypical networks": 0.960},
}


def alphabets() -> dict[str, Alphabet] | None:
    """Every alphabet of both sets, None where they are not here."""
    from PIL import Image

    root = os.environ.get("PRAGNOSIA_DATA")
    if not root or not all((Path(root) / file).is_file() for file in FILES):
        return None
    found: dict[str, dict[str, dict[int, Tensor]]] = {}
    for file in FILES:
        with zipfile.ZipFile(Path(root) / file) as packed:
            for name in sorted(packed.namelist()):
                if not name.endswith(".png") or name.startswith("__"):
                    continue
                _, alphabet, character, drawing = name.split("/")
                image = (
                    Image.open(io.BytesIO(packed.read(name))).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
                )
                hand = int(drawing.removesuffix(".png").split("_")[1]) - 1
                ink = 1 - torch.from_numpy(np.asarray(image, np.float32).copy()) / 255
                found.setdefault(alphabet, {}).setdefault(character, {})[hand] = ink
    return {
        alphabet: torch.stack([torch.stack([hands[at] for at in range(HANDS)]) for hands in characters.values()])
        for alphabet, characters in found.items()
    }


def encoder(seed: int) -> nn.Sequential:
    """Four times: convolution, norm, rectify, halve; 64 channels, 64 numbers a key (Vinyals et al. 2016)."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for number in range(4):
        layers += [
            nn.Conv2d(1 if number == 0 else 64, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten())


def learn(model: nn.Sequential, background: Sequence[Alphabet], *, episodes: int, seed: int) -> None:
    """Prototypes (Snell et al. 2017, eq. 2), compared by the cosine, as the store does.

    Turned characters count as characters of their own, as in Vinyals et al. 2016.
    """
    chance = torch.Generator().manual_seed(seed)
    drawings = torch.cat(list(background))
    turned = torch.cat([torch.rot90(drawings, turns, (2, 3)) for turns in range(4)])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, episodes)
    shown, asked = 3, 5
    model.train()
    for _ in range(episodes):
        characters = torch.randperm(len(turned), generator=chance)[:WAYS]
        hands = torch.randperm(HANDS, generator=chance)[: shown + asked]
        some = turned[characters][:, hands].flatten(0, 1)[:, None]
        keys = F.normalize(model(_shifted(some, chance)), dim=-1).view(WAYS, shown + asked, -1)
        prototypes = F.normalize(keys[:, :shown].mean(1), dim=-1)
        likeness = 10 * keys[:, shown:].flatten(0, 1) @ prototypes.T
        loss = F.cross_entropy(likeness, torch.arange(WAYS).repeat_interleave(asked))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()


def _shifted(images: Tensor, chance: torch.Generator) -> Tensor:
    """All moved together by up to two pixels."""
    right, down = torch.randint(-2, 3, (2,), generator=chance).tolist()
    return torch.roll(images, (down, right), (2, 3))


def blurred(images: Tensor) -> Tensor:
    """A mean over three pixels, twice: ink that is nearly in place counts."""
    soft = F.avg_pool2d(F.avg_pool2d(images[:, None], 3, 1, 1), 3, 1, 1)
    return soft.flatten(1)


def remembered(keys: Tensor, folder: Path) -> Neighbours:
    """Every key a lesson of one entry in a new store: what it brings back is which character it was."""
    header = Header(model="omniglot", tokenizer="characters", width=keys.shape[1], limit=LIMIT)
    store = EpisodicStore.open(folder, header)
    episodes = [
        Episode(
            text=f"character {number}",
            tokens=np.array([0, number], np.int32),
            starts=np.zeros(2, np.int32),
            keys=key.numpy()[None].astype(np.float16),
            surprises=np.ones(1, np.float16),
        )
        for number, key in enumerate(keys)
    ]
    store.write(episodes)
    return Neighbours(store)


@torch.no_grad()
def asked(trials: Sequence[tuple[Tensor, Tensor]], keys: Keys) -> list[bool]:
    """Of every drawing that is asked for whether the nearest in the store is its character."""
    right: list[bool] = []
    for shown, others in trials:
        with tempfile.TemporaryDirectory() as folder:
            near = remembered(keys(shown), Path(folder))
            found = near.search(keys(others).numpy(), 1).tokens[:, 0]
        right += (found == np.arange(WAYS)).tolist()
    return right


def trials_of(
    alphabets_: Mapping[str, Alphabet], trials: int, seed: int, *, within: bool
) -> list[tuple[Tensor, Tensor]]:
    """Twenty characters by one hand, and the same by another."""
    chance, found = torch.Generator().manual_seed(seed), []
    pools = (
        [one for one in alphabets_.values() if len(one) >= WAYS] if within else [torch.cat(list(alphabets_.values()))]
    )
    for number in range(trials):
        pool = pools[number % len(pools)]
        characters = torch.randperm(len(pool), generator=chance)[:WAYS]
        one, other = torch.randperm(HANDS, generator=chance)[:2].tolist()
        found.append((pool[characters, one], pool[characters, other]))
    return found


def measured(drawn: Mapping[str, Alphabet], seed: int, episodes: int, trials: int) -> dict[str, dict[str, float]]:
    """Accuracy of every way to make keys, in both kinds of trial."""
    held = HELD_OUT[seed % len(HELD_OUT)]
    background = [one for name, one in drawn.items() if name not in held]
    model, fresh = encoder(seed), encoder(seed)
    began = time.perf_counter()
    learn(model, background, episodes=episodes, seed=seed)
    fresh.train()
    with torch.no_grad():  # its norms see the background once, so that it is not lamer than it must be
        fresh(torch.cat([one[:, 0] for one in background])[:, None])
    fresh.eval()
    arms: dict[str, Keys] = {
        "pixels": lambda images: images.flatten(1),
        "pixels, blurred": blurred,
        "encoder before it learned": lambda images: fresh(images[:, None]),
        "encoder": lambda images: model(images[:, None]),
    }
    mine = {name: drawn[name] for name in held}
    found: dict[str, dict[str, float]] = {name: {"seconds": time.perf_counter() - began} for name in arms}
    for kind in ("within", "among"):
        some = trials_of(mine, trials, seed, within=kind == "within")
        for name, keys in arms.items():
            found[name][kind] = statistics.mean(map(float, asked(some, keys)))
    print(f"seed {seed}, {', '.join(held)} held out: {found['encoder']['within']:.3f} within an alphabet", flush=True)
    return found


def percent(values: Sequence[float]) -> str:
    """Mean and spread over seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} +- {100 * spread:.1f}"


def main() -> None:
    """Learn, write, ask, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--trials", type=int, default=100)
    given = parser.parse_args()
    drawn = alphabets()
    if drawn is None:
        print(f"skipped: PRAGNOSIA_DATA names no folder with {' and '.join(FILES)}")
        return
    runs = [measured(drawn, seed, given.episodes, given.trials) for seed in range(given.seeds)]
    rows: list[list[Any]] = [
        [name, *(percent([run[name][kind] for run in runs]) for kind in ("within", "among"))] for name in runs[0]
    ]
    for way, figures in PUBLISHED.items():
        for name, share in figures.items():
            cell = f"{100 * share:.1f}"
            rows.append([f"published: {name}", *((cell, "") if way.startswith("within") else ("", cell))])
    header = ["keys", "within an alphabet, %", "among held-out ones, %"]
    values = {"seeds": given.seeds, "episodes": given.episodes, "trials": given.trials, "held_out": HELD_OUT}
    values |= {"runs": runs, "published": PUBLISHED, "chance": 1 / WAYS}
    publish(
        "A character seen once, among 20, by the nearest key in the store (chance: 5 %)", header, rows, values, __file__
    )


if __name__ == "__main__":
    main()
