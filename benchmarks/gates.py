"""Do token gates pay? A model half of whose tokens pass every second layer by, beside models that compute every token.

Quality: against the same model without gates (equal tokens, more operations), and against a dense model that was made
narrower until it takes as many operations per token (equal tokens, equal operations). All see the same tokens in the
same order, each at its best learning rate (`pragnosia compare` sweeps it), three seeds each; differences are taken seed
by seed. Ablations: a shallower dense model, and gates of other shares and on more layers. Speed: decoding and training
tokens per second with gates over without, in turn. JSON beside this file; a part that is not run stays as it was.

    python benchmarks/gates.py [--seeds 3] [--steps 200] [--out runs/gates] [--only speed|quality|ablations]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml
from _arms import books, by_name, chosen, gap, told, trained, with_parts
from _bench import Arm, in_turn, median, publish, ratio, spread, timed

from pragnosia.inference.program import Program
from pragnosia.measure.accounting import account
from pragnosia.model.configuration import PragnosiaConfig
from pragnosia.model.cortex import PlainCortex, initialise
from pragnosia.training.log import LOG, read_log

CONFIG = Path(__file__).with_suffix(".yaml")
WITHOUT, NARROWER = "without", "narrower"
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


def shapes(base: dict[str, Any], context: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Every part's models, by name; what the others are measured against stands first."""
    gated, plain = base, {**base, "gates": None}
    arms = {WITHOUT: plain, "gated": gated, NARROWER: narrowed(base, operations(gated, context), context)}
    layers = base["num_hidden_layers"]
    others: dict[str, dict[str, Any]] = {"shallower": {**plain, "num_hidden_layers": layers - 1}}
    for share in (0.25, 0.125):
        others[f"gated-{100 * share:g}"] = {**base, "gates": {**base["gates"], "share": share}}
    others["gated-all-but-first"] = {**base, "gates": {**base["gates"], "layers": list(range(1, layers))}}
    return {"quality": arms, "ablations": arms | others}


def quality(text: Path, asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What was trained, by part."""
    base = yaml.safe_load(CONFIG.read_text("utf-8"))
    parts = shapes(base["model"], base["batch"]["sequence_length"])
    if asked.only is not None:
        parts = {asked.only: parts[asked.only]}
    out = asked.out if asked.only is None else asked.out.with_name(f"{asked.out.name}-{asked.only}")
    models = {name: model for arms in parts.values() for name, model in arms.items()}
    report = trained(base, models, text=text, seeds=asked.seeds, steps=asked.steps, out=out)
    for arm in report["arms"]:
        ends = [read_log(out / arm["name"] / f"seed-{seed}" / LOG)[-1] for seed in range(asked.seeds)]
        if "tokens_passed" in ends[0]:
            arm["tokens_passed"] = median([end["tokens_passed"] for end in ends])
    return {name: chosen(report, list(arms)) for name, arms in parts.items()}


def rows_of(name: str, part: dict[str, Any]) -> list[list[str]]:
    """A part's arms for the table."""
    arms = by_name(part)
    return [
        [
            *(name, arm["name"], told(arm)),
            *("" if arms[other] is arm else gap(arm, arms[other]) for other in (WITHOUT, NARROWER)),
            *(f"{arm['operations_per_token']:,}", f"{arm['total_parameters']:,}"),
            f"{arm['tokens_passed']:.3f}" if "tokens_passed" in arm else "",
            *(f"{arm['tokens_per_second']['mean']:.0f}", f"{arm['learning_rate']:g}"),
        ]
        for arm in arms.values()
    ]


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
        "rounds": rounds,
    }


def main() -> None:
    """Run the parts and keep their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("runs/gates"))
    parser.add_argument("--only", choices=("speed", "quality", "ablations"))
    asked = parser.parse_args()
    fresh: dict[str, dict[str, Any]] = {}
    if asked.only in (None, "speed"):
        fresh["decoding"] = speed(asked.rounds)
    text = None if asked.only == "speed" else books()
    if text is not None:
        fresh |= quality(text, asked)
    kept = with_parts(__file__, fresh)
    if "decoding" in kept:
        found = kept["decoding"]
        print(
            f"decoding, gated over without: {spread(found['gated_over_without'])}; {found['tokens_passed']:.2f} of the "
            f"tokens pass a gate, {found['operations_of_without']:.2f} of the operations"
        )
    rows = [row for name, part in kept.items() if "arms" in part for row in rows_of(name, part)]
    header = [
        "part",
        "arm",
        "bits/byte",
        "minus without, by seed",
        "minus narrower, by seed",
        "operations",
        "parameters",
    ]
    header += ["passed", "tokens/s, training", "rate"]
    publish("Token gates: held-out bits per byte at equal tokens", header, rows, kept, __file__, parts=True)


if __name__ == "__main__":
    main()
