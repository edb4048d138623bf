"""Do token gates pay? A model half of whose tokens pass every second layer by, beside models that compute every token.

Quality: against the same model without gates (equal tokens, more operations), and against a dense model that was made
narrower until it takes as many operations per token (equal tokens, equal operations). All see the same tokens in the
same order, each at its best learning rate (`pragnosia compare` sweeps it), three seeds each. `--ablations` adds a
shallower dense model, and gates of other shares and on more layers. Speed: decoding and training tokens per second
with gates over without, in turn. JSON beside this file.

    python benchmarks/gates.py [--seeds 3] [--steps 200] [--out runs/gates] [--ablations] [--only speed|quality]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from _bench import Arm, in_turn, median, publish, ratio, spread, timed

from pragnosia.inference.program import Program
from pragnosia.measure.accounting import account
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import PlainCortex, initialise
from pragnosia.training.compare import Sweep, compare
from pragnosia.training.log import LOG, read_log

CONFIG = Path(__file__).with_suffix(".yaml")
BOOKS = "text_en/books_pd.train.txt.xz"
SPEAKING: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "max_position_embeddings": 1024,
    "attention": {"num_heads": 8, "num_key_value_heads": 4, "head_dim": 64},
    "feed_forward": {"width": 2048},
    "gates": {"layers": [1, 3, 5, 7], "share": 0.5},
}
"""What decodes: 69 MiB of weights in bfloat16, which no cache of a common machine holds beside others'."""
SAID = 128


def operations(shape: dict[str, Any], context: int) -> int:
    """Per token, the share that passes a gate counted."""
    return account(PragnosiaConfig(**shape), context=context).operations_per_token


def narrowed(shape: dict[str, Any], target: int, context: int) -> dict[str, Any]:
    """Without gates, its feed-forward of such a width that a token takes `target` operations."""
    plain = {**shape, "gates": None}
    wide = plain["feed_forward"]
    widths = range(8, wide["width"] + 1, 8)
    tried = {width: {**plain, "feed_forward": {**wide, "width": width}} for width in widths}
    return min(tried.values(), key=lambda one: abs(operations(one, context) - target))


def shapes(base: dict[str, Any], context: int, *, ablations: bool) -> dict[str, dict[str, Any]]:
    """Every arm's model, by name; what the others are measured against stands first."""
    gated, plain = base, {**base, "gates": None}
    arms = {"without": plain, "gated": gated, "narrower": narrowed(base, operations(gated, context), context)}
    if ablations:
        layers = base["num_hidden_layers"]
        arms["shallower"] = {**plain, "num_hidden_layers": layers - 1}
        for share in (0.25, 0.125):
            arms[f"gated-{100 * share:g}"] = {**base, "gates": {**base["gates"], "share": share}}
        arms["gated-all-but-first"] = {**base, "gates": {**base["gates"], "layers": list(range(1, layers))}}
    return arms


def quality(books: Path, seeds: int, steps: int, out: Path, *, ablations: bool) -> tuple[list[list[Any]], Any]:
    """Rows of the table, and what was measured."""
    base = yaml.safe_load(CONFIG.read_text("utf-8"))
    folder = out.with_name(out.name + "-arms")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, shape in shapes(base["model"], base["batch"]["sequence_length"], ablations=ablations).items():
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump({**base, "model": shape}, sort_keys=False), "utf-8")
    report = compare(paths, data=[str(books)], seeds=seeds, out=out, overrides=[f"steps={steps}"], sweep=Sweep())
    values = report.to_dict()
    values.pop("out")
    by_name = {arm.name: arm for arm in report.arms}
    rows, passed = [], {}
    for arm in report.arms:
        ends = [read_log(out / arm.name / f"seed-{seed}" / LOG)[-1] for seed in range(seeds)]
        if "tokens_passed" in ends[0]:
            passed[arm.name] = median([end["tokens_passed"] for end in ends])
        gaps = [
            "" if other is arm else f"{arm.bits_per_byte.mean - other.bits_per_byte.mean:+.4f}"
            for other in (by_name["without"], by_name["narrower"])
        ]
        rows.append(
            [
                arm.name,
                f"{arm.bits_per_byte.mean:.4f} +- {arm.bits_per_byte.std:.4f}",
                *gaps,
                f"{arm.operations_per_token:,}",
                f"{arm.total_parameters:,}",
                f"{passed[arm.name]:.3f}" if arm.name in passed else "",
                f"{arm.tokens_per_second.mean:.0f}",
                f"{arm.learning_rate:g}",
            ]
        )
    return rows, {**values, "tokens_passed": passed}


def speaking(*, gated: bool) -> tuple[Arm, float]:
    """Decodes the same words in a model of random weights; the share of its tokens that pass its gates."""
    torch.manual_seed(0)
    config = PragnosiaConfig(**{**SPEAKING, "gates": SPEAKING["gates"] if gated else None})
    model = PlainCortex(config).eval()
    for module in model.modules():
        initialise(module, config)
    model.tie_weights()
    words = torch.randint(0, config.vocab_size, (1, SAID), generator=torch.Generator().manual_seed(1))
    share = 1.0
    with torch.inference_mode():
        model = model.to(torch.bfloat16)
        for _ in range(12 if gated else 0):  # gates of random weights learn which half of these words passes
            model.rebalance(model(words, use_cache=False).routings)
        read = model(words, use_cache=False, logits_to_keep=1)
        if gated:
            gates = [routing.gate.units for routing in read.routings if routing is not None]
            share = float((torch.cat(gates) >= 0).float().mean())
    state = model.fresh_state(1, SAID)

    def decode() -> float:
        with torch.inference_mode():
            program = Program(model, state)
            for word in words[0].tolist():
                program(word)
                program.length += 1
        return float(SAID)

    return timed(decode), share


def speed(rounds: int) -> dict[str, Any]:
    """Decoding with gates beside decoding without, in turn."""
    (plain, _), (gated, share) = speaking(gated=False), speaking(gated=True)
    rates = in_turn({"without": plain, "gated": gated}, rounds=rounds, warm_up=2)
    measured = {**SPEAKING, "gates": {**SPEAKING["gates"], "share": share}}
    fewer = operations(measured, SAID) / operations({**SPEAKING, "gates": None}, SAID)
    return {
        "tokens_per_second": {name: median(values) for name, values in rates.items()},
        "gated_over_without": ratio(rates["gated"], rates["without"]),
        "tokens_passed": share,
        "operations_of_without": fewer,
    }


def main() -> None:
    """Run both parts and keep their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("runs/gates"))
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--only", choices=("speed", "quality"))
    asked = parser.parse_args()
    values: dict[str, Any] = {}
    rows: list[list[Any]] = []
    if asked.only != "quality":
        values["decoding"] = found = speed(asked.rounds)
        print(
            f"decoding, gated over without: {spread(found['gated_over_without'])}; {found['tokens_passed']:.2f} of the "
            f"tokens pass a gate, {found['operations_of_without']:.2f} of the operations"
        )
    named = os.environ.get("PRAGNOSIA_DATA")
    if asked.only != "speed":
        if not named or not (Path(named) / BOOKS).is_file():
            print(f"quality skipped: PRAGNOSIA_DATA names no folder with {BOOKS}")
        else:
            rows, values["quality"] = quality(
                Path(named) / BOOKS, asked.seeds, asked.steps, asked.out, ablations=asked.ablations
            )
    header = ["arm", "bits/byte", "against without", "against narrower", "operations", "parameters", "passed"]
    header += ["tokens/s, training", "rate"]
    publish("Token gates: held-out bits per byte at equal tokens", header, rows, values, __file__)


if __name__ == "__main__":
    main()
