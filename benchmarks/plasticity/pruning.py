"""What does a trained mixture lose with half its experts, before and after a short recovery?

A mixture of 16 experts a layer, 2 awake, is trained on books (pruning.yaml), then loses half its experts by each way
there is, and by chance. Perplexity is measured on books that training never saw. The model pruned by REAP learns on for
RECOVERY steps of 1024 tokens; so does one pruned by chance, and the parent itself, on the same text: what pruning costs
is the difference to the parent as it was, and to the parent that learned on as well. Files as `save_pretrained` writes
them; decoding of parent and child in turn.

    python benchmarks/plasticity/pruning.py [--seeds 3] [--out FOLDER]     PRAGNOSIA_DATA names the folder of real text
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from _arms import books
from _bench import Arm, in_turn, publish, ratio, spread

from pragnosia import Pragnosia
from pragnosia.data import Source, resolve
from pragnosia.data.pieces import pieces
from pragnosia.inference.loading import load_model, load_tokenizer
from pragnosia.inference.sampler import Sampling
from pragnosia.measure.calibration import cut
from pragnosia.measure.scoring import score
from pragnosia.plasticity.pruning import keep_units, prune
from pragnosia.training.progress import Silent
from pragnosia.training.recovery import BATCH_TOKENS, rehearse
from pragnosia.training.trainer import train

QUESTION = "Half the experts of a trained mixture pruned: perplexity, files, decoding"
WAYS = ("reap", "load", "magnitude", "merge")
KEEP, RECOVERY, RATE, LOOKED_AT = 0.5, 100, 1e-3, 16384
HELD_OUT, CONTEXT, NEW, ROUNDS = 32768, 128, 100, 5


def perplexity(model: Any, windows: list[torch.Tensor]) -> float:
    """Per token, windows read one by one."""
    nats, tokens = 0.0, 0
    with torch.inference_mode():
        for window in windows:
            hidden = model.model(window[None, :-1], use_cache=False).last_hidden_state[0]
            nats -= float(score(hidden, model.lm_head, window[1:]).log_probabilities.double().sum())
            tokens += len(window) - 1
    return math.exp(nats / tokens)


def by_chance(model: Any, seed: int) -> None:
    """Half of them, whoever they are."""
    count, generator = model.config.units.num_units, torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(count, generator=generator)[: count // 2].sort().values.tolist() for _ in model.experts()]
    keep_units(model, drawn)


def one_seed(seed: int, text: Path, out: Path) -> dict[str, Any]:
    """Everything of one trained mixture."""
    logging.disable_progress_bar()
    settings = Path(__file__).with_suffix(".yaml")
    if not (out / "report.json").is_file():  # one that is there is trained
        told = [f"seed={seed}", f"data.cache={out.parent / 'cache'}"]
        train(settings, data=[str(text)], out=out, overrides=told, reporter=Silent(), resume=True)
    parent = load_model(out)
    tokenizer = load_tokenizer(out, parent.config.vocab_size, parent.config.tokenizer_digest)

    def windows(source: Source, tokens: int) -> list[torch.Tensor]:
        return list(cut(tokenizer, source, parent.config.vocab_size, tokens, CONTEXT))

    learned = windows(pieces(resolve(str(text)), seed)[0], RECOVERY * BATCH_TOKENS)
    seen = learned[: LOOKED_AT // CONTEXT]
    held_out = windows(pieces(resolve(str(text.with_name("books_pd.valid.txt.xz"))))[0], HELD_OUT)

    def changed(change: Callable[[Any], Any]) -> Any:
        model = copy.deepcopy(parent)
        change(model)
        return model

    values: dict[str, Any] = {"parent": perplexity(parent, held_out)}
    for way in WAYS:
        values[way] = perplexity(changed(lambda model, way=way: prune(model, KEEP, by=way, windows=seen)), held_out)
    values["by chance"] = perplexity(changed(lambda model: by_chance(model, seed)), held_out)
    child = changed(lambda model: prune(model, KEEP, by="reap", windows=seen))
    started = time.perf_counter()
    rehearse(child, learned, RECOVERY, learning_rate=RATE)
    values["seconds_recovering"] = time.perf_counter() - started
    values["reap, recovered"] = perplexity(child, held_out)
    longer = changed(lambda model: rehearse(model, learned, RECOVERY, learning_rate=RATE))
    values["parent, trained on"] = perplexity(longer, held_out)
    random = changed(lambda model: by_chance(model, seed))
    rehearse(random, learned, RECOVERY, learning_rate=RATE)
    values["by chance, recovered"] = perplexity(random, held_out)
    values |= sizes(parent, child)
    values["decode"] = in_turn({"parent": speaking(parent), "child": speaking(child)}, rounds=ROUNDS)
    return values


def sizes(parent: Any, child: Any) -> dict[str, int]:
    """Bytes on disk."""
    held = {}
    for name, model in (("parent_bytes", parent), ("child_bytes", child)):
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            held[name] = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return held


def speaking(model: Any) -> Arm:
    """Tokens after the first, and their seconds."""
    speaker = Pragnosia(model)

    def arm() -> tuple[float, float]:
        decoder = speaker.decoder(NEW + 8)
        decoder.read([1, 2, 3, 4])
        moments = [time.perf_counter() for _ in decoder.speak(NEW, Sampling())]
        assert decoder.decoding == "compiled"
        return len(moments) - 1.0, moments[-1] - moments[0]

    return arm


def told(seeds: dict[str, dict[str, Any]]) -> tuple[list[list[Any]], dict[str, Any]]:
    """The table and what is said of all seeds."""
    rows, summary = [], {}
    arms = ["parent", "parent, trained on", *WAYS, "by chance", "reap, recovered", "by chance, recovered"]
    for arm in arms:
        figures = [values[arm] for values in seeds.values()]
        rises = [values[arm] / values["parent"] - 1 for values in seeds.values()]
        against = [values[arm] / values["parent, trained on"] - 1 for values in seeds.values()]
        summary[arm] = {"perplexity": mean(figures), "rise": rises, "rise_beside_parent_trained_on": against}
        rows.append([arm, *(f"{figure:.2f}" for figure in figures), f"{mean(rises):+.1%}", f"{mean(against):+.1%}"])
    smaller = [1 - values["child_bytes"] / values["parent_bytes"] for values in seeds.values()]
    pace = ratio(
        *([rate for values in seeds.values() for rate in values["decode"][arm]] for arm in ("child", "parent"))
    )
    rows.append(["files smaller by", *(f"{share:.1%}" for share in smaller), "", ""])
    rows.append(["decoding, child to parent", spread(pace), *[""] * (len(seeds) + 1)])
    return rows, {"arms": summary, "smaller": smaller, "decode": pace}


def main() -> None:
    """Seed by seed; what is measured is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/pruning"))
    given = parser.parse_args()
    text, path = books(), Path(__file__).with_suffix(".json")
    seeds: dict[str, Any] = json.loads(path.read_text("utf-8"))["seeds"] if path.exists() else {}
    for seed in range(given.seeds):
        if str(seed) not in seeds and text is not None:
            seeds[str(seed)] = one_seed(seed, text, given.out / f"seed-{seed}")
            rows, values = told(seeds)
            header = ["", *(f"seed {name}" for name in seeds), "to parent", "to parent trained on"]
            publish(QUESTION, header, rows, {"seeds": seeds, **values}, __file__)


if __name__ == "__main__":
    main()
