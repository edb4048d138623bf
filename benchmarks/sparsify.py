"""What does a model gain that reads less of itself, and what does it lose? Inputs that sleep, and 2:4 weights.

Speed: greedy decoding of a random dense model of 1.4 GB (far beyond the caches), wide awake and at several levels, arms
in turn. Thresholds are found on random tokens, which let the same share sleep as text does. ReLU^2: how much a layout
that lets silent neurons go unread is worth, at the share that is silent in a random model and at 90 %. 2:4: the same
model beside its packed formats. Loss: perplexity of stories260K, as it lies (llama2.c), on simple stories held out.

    python benchmarks/sparsify.py [ROUNDS] [LAYERS]      the folder of real text is named by PRAGNOSIA_DATA
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from _bench import Arm, in_turn, median, publish, ratio, spread
from speculation import documents, learned

from pragnosia import Pragnosia, PragnosiaConfig, kernels
from pragnosia.checkpoints import import_model
from pragnosia.data import Joined, Texts, resolve
from pragnosia.inference.loading import load_model, load_tokenizer
from pragnosia.inference.sampler import Sampling
from pragnosia.inference.sparsity import lay_silent, put_to_sleep, sites_of
from pragnosia.measure.accounting import account
from pragnosia.measure.machine import machine_record
from pragnosia.measure.thresholds import Examples, calibrated, examine, examples
from pragnosia.model.cortex import PlainCortex, initialise
from pragnosia.quantisation.layers import PackedLinear
from pragnosia.training import recovery
from pragnosia.training.recovery import BATCH_TOKENS, recover

SEED, NEW, WIDTH, HIDDEN, VOCABULARY = 0, 24, 2048, 8192, 8192
STEPS, SEEN = 200, 16  # of recovery; windows of text to find thresholds on
LEVELS = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
FORMATS = ("int8", "int4", "bf16-2:4", "int8-2:4")
TEXT = "text_en/african_storybook.train.txt.xz"
TRAINED_STEPS, TRAINED_NEW, PATTERN = 300, 96, "bf16-2:4"


QUESTION = "Decoding a dense model that reads less of itself, CPU, batch 1"


def random_model(layers: int, activation: str = "swiglu") -> PlainCortex:
    """Dense, in bfloat16."""
    config = PragnosiaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        attention={"num_heads": 16, "num_key_value_heads": 8},
        feed_forward={"width": HIDDEN, "activation": activation},
    )
    model = PlainCortex.unfilled(config).to_empty(device="cpu").to(torch.bfloat16)
    for module in model.modules():
        initialise(module, config)
    model.tie_weights()
    return model.eval()


def speaking(model: Any, new: int = NEW) -> Arm:
    """Tokens after the first, and their seconds."""
    speaker = Pragnosia(model)

    def arm() -> tuple[float, float]:
        decoder = speaker.decoder(new + 8)
        decoder.read([1, 2, 3, 4])
        times = [time.perf_counter() for _ in decoder.speak(new, Sampling())]
        assert decoder.decoding == "compiled"
        return len(times) - 1.0, times[-1] - times[0]

    return arm


def asleep(model: Any, sites: Any, new: int = NEW) -> Arm:
    """The same at other thresholds: weights are shared between levels."""
    speaks = speaking(model, new)

    def arm() -> tuple[float, float]:
        put_to_sleep(model, sites)
        return speaks()

    return arm


def levels(rounds: int, layers: int) -> dict[str, Any]:
    """Decoding wide awake and at each level."""
    model, sleeper = random_model(layers), random_model(layers)
    windows = list(torch.randint(VOCABULARY, (4, 128), generator=torch.Generator().manual_seed(SEED)))
    arms, read = {"wide awake": speaking(model)}, {"wide awake": account(model).bytes_per_token}
    for level in LEVELS:
        sites = calibrated(sleeper, windows, level).sites
        arms[f"{level}"], read[f"{level}"] = asleep(sleeper, sites), account(sleeper).bytes_per_token
    return {"bytes_per_token": read, **compared(in_turn(arms, rounds=rounds), "wide awake")}


def silent(rounds: int, layers: int) -> dict[str, Any]:
    """A ReLU^2 model row by row and neuron by neuron, half of its neurons silent, then nine of ten."""
    rates = {}
    plain, laid = random_model(layers, "relu2"), random_model(layers, "relu2")
    for share in (0.5, 0.9):
        for model in (plain, laid):
            for layer in model.model.layers:
                layer.feed_forward_norm.weight.data.fill_(1.0)
                layer.feed_forward.up.weight.data[: round((2 * share - 1) * HIDDEN)].copy_(_never(share))
        lay_silent(laid)
        rates[f"{share}"] = compared(
            in_turn({"read": speaking(plain), "unread": speaking(laid)}, rounds=rounds), "read"
        )
    return rates


def _never(share: float) -> torch.Tensor:
    """Rows whose neurons never wake: zeros, which ReLU^2 leaves at zero."""
    return torch.zeros(round((2 * share - 1) * HIDDEN), WIDTH, dtype=torch.bfloat16)


def packed(rounds: int, layers: int) -> dict[str, Any]:
    """2:4 beside other formats, all layers packed, table and head in bfloat16."""
    arms, sizes = {}, {}
    for name in ("bf16", *FORMATS):
        model = random_model(layers)
        if name != "bf16":
            laid_out(model, name)
        sizes[name] = bytes_of_layers(model)
        arms[name] = speaking(model)
    return {"bytes_of_layers": sizes, **compared(in_turn(arms, rounds=rounds), "bf16")}


def compared(rates: dict[str, list[float]], base: str) -> dict[str, Any]:
    """Medians, and each arm over one of them."""
    over = {name: ratio(values, rates[base]) for name, values in rates.items() if name != base}
    return {"tokens_per_second": {name: median(values) for name, values in rates.items()}, f"over_{base}": over}


def losses(data: Path) -> dict[str, float]:
    """Perplexity of stories260K: each level, and 2:4 with and without recovery."""
    with TemporaryDirectory() as folder:
        model_folder = Path(folder) / "stories"
        import_model(data / "checkpoints" / "stories260K.bin", model_folder)
        tokenizer = load_tokenizer(model_folder, 512)
        text = Joined((resolve(str(data / TEXT)),))
        found = examples(tokenizer, text, tokens=STEPS * BATCH_TOKENS, vocab_size=512, context=512)
        model = load_model(model_folder)
        perplexities = {"wide awake": examine(model, found.held_out).perplexity}
        for level in LEVELS:
            for share_out in (False, True) if 0.3 < level < 0.7 else (False,):
                model = load_model(model_folder)
                calibrated(model, found.seen[:SEEN], level, share_out=share_out)
                name = f"{level}, shared out" if share_out else f"{level}"
                perplexities[name] = examine(model, found.held_out).perplexity
        perplexities |= pruned(model_folder, found)
    return perplexities


def pruned(folder: Path, found: Examples) -> dict[str, float]:
    """2:4 as it is cut, and after recovery; and what the same training does for the whole model: it knows the text."""
    perplexities = {}
    for steps, cut in ((0, True), (STEPS, True), (STEPS, False)):
        model = load_model(folder)
        if steps:
            train_on(model, found.seen, steps, cut=cut)
        elif cut:
            cut_out(model)
        name = f"2:4, {steps} steps of recovery" if cut else f"whole, {steps} steps more"
        perplexities[name] = examine(model, found.held_out).perplexity
    return perplexities


def cut_out(model: Any) -> None:
    """Two of every four weights, as they would be stored."""
    for linear in sites_of(model).values():
        linear.weight.data = kernels.unpack(kernels.pack(linear.weight.data, PATTERN), linear.in_features, PATTERN)


def one_model(rounds: int, folder: Path, steps: int) -> dict[str, Any]:
    """Speed, bytes and perplexity of one trained model at every level, and 2:4; recovered where `steps` ask for it."""
    learn, held, more = documents()
    bits = learned(folder, learn, TRAINED_STEPS)
    print(f"the model: {bits:.4f} bits per byte", flush=True)

    def fresh() -> Any:
        return load_model(folder, torch.bfloat16)

    shape = load_model(folder).config
    vocabulary, context = int(shape.vocab_size), int(shape.max_position_embeddings)
    tokenizer = load_tokenizer(folder, vocabulary)
    found = examples(tokenizer, Texts([*held, *more], "held out"), tokens=8192, vocab_size=vocabulary, context=context)
    model, sleeper = fresh(), fresh()
    arms, read = {"wide awake": speaking(model, TRAINED_NEW)}, {"wide awake": account(model).bytes_per_token}
    perplexity = {"wide awake": examine(model, found.held_out).perplexity}
    for level in LEVELS[1:-2]:
        sites = calibrated(sleeper, found.seen, level).sites
        examined = examine(sleeper, found.held_out)
        sites = {name: replace(site, asleep=examined.asleep[name]) for name, site in sites.items()}
        put_to_sleep(sleeper, sites)
        name = f"level {level}"
        perplexity[name], read[name] = examined.perplexity, account(sleeper).bytes_per_token
        arms[name] = asleep(sleeper, sites, TRAINED_NEW)
    packed = fresh()
    cut_out(packed)
    perplexity["2:4"] = examine(packed, found.held_out).perplexity
    arms["2:4"] = speaking(laid_out(packed, PATTERN), TRAINED_NEW)
    read["2:4"] = read["wide awake"] + bytes_of_layers(packed) - bytes_of_layers(model)
    if steps:
        seen = examples(
            tokenizer, Texts(learn, "learned"), tokens=steps * BATCH_TOKENS, vocab_size=vocabulary, context=context
        ).seen
        for name, cut in ((f"2:4, {steps} steps of recovery", True), (f"whole, {steps} steps more", False)):
            again = load_model(folder, torch.float32)
            train_on(again, seen, steps, cut=cut)
            perplexity[name] = examine(again.bfloat16(), found.held_out).perplexity
    rates = in_turn(arms, rounds=rounds)
    return {
        "bits_per_byte": bits,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "rounds": rounds,
        "new": TRAINED_NEW,
        "bytes_per_token": read,
        "perplexity": perplexity,
        **compared(rates, "wide awake"),
    }


def bytes_of_layers(model: Any) -> int:
    """Without table and head."""
    return sum(tensor.nbytes for tensor in (*model.model.layers.parameters(), *model.model.layers.buffers()))


def laid_out(model: Any, name: str) -> Any:
    """The layers of a model packed."""
    for site, linear in sites_of(model).items():
        rows = kernels.pack(linear.weight.data, name)
        model.set_submodule(site, PackedLinear(rows, kernels.FORMATS[name], linear.in_features))
    return model


def train_on(model: Any, windows: Any, steps: int, *, cut: bool) -> None:
    """Recovery, or the same training of the whole model."""
    if cut:
        recover(model, windows, steps)
        cut_out(model)
        return
    with patch.object(recovery, "kept", lambda weight: torch.ones_like(weight, dtype=torch.bool)):
        recover(model, windows, steps)


def publish_one(found: dict[str, Any]) -> None:
    """The table of one model, and its part of the JSON."""
    path = Path(__file__).with_suffix(".json")
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    kept.pop("question", None)
    base, rows = found["bytes_per_token"]["wide awake"], []
    for name, perplexity in found["perplexity"].items():
        over = found["over_wide awake"].get(name)
        share = f"{found['bytes_per_token'][name] / base:.0%}" if name in found["bytes_per_token"] else ""
        rate = f"{found['tokens_per_second'][name]:.1f}" if name in found["tokens_per_second"] else ""
        rows.append([name, rate, "" if over is None else spread(over), share, f"{perplexity:.2f}"])
    header = ["one trained model", "tokens/s", "over the whole", "bytes read", "perplexity, held out"]
    values = {**kept, "trained": {"machine": machine_record(), **found}}
    publish(QUESTION, header, rows, values, __file__, parts=True)


def main(rounds: int, layers: int) -> None:
    """Measure, print, write."""
    torch.manual_seed(SEED)
    values: dict[str, Any] = {"seed": SEED, "rounds": rounds, "layers": layers, "new": NEW, "text": TEXT}
    if os.environ.get("PRAGNOSIA_DATA"):
        values["perplexity"] = losses(Path(os.environ["PRAGNOSIA_DATA"]))
    values["levels"] = levels(rounds, layers)
    values["relu2"] = silent(rounds, layers)
    values["packed"] = packed(rounds, layers)
    lost, sleep = values.get("perplexity", {}), values["levels"]
    base = sleep["bytes_per_token"]["wide awake"]
    rows = [
        [
            "wide awake",
            f"{sleep['tokens_per_second']['wide awake']:.2f}",
            "",
            "100%",
            f"{lost.get('wide awake', 0):.2f}",
        ]
    ]
    for name, over in sleep["over_wide awake"].items():
        share = f"{sleep['bytes_per_token'][name] / base:.0%}"
        rows.append(
            [
                f"level {name}",
                f"{sleep['tokens_per_second'][name]:.2f}",
                spread(over),
                share,
                f"{lost.get(name, 0):.2f}",
            ]
        )
    for share, each in values["relu2"].items():
        rows.append(
            [
                f"ReLU^2, {share} silent",
                f"{each['tokens_per_second']['unread']:.2f}",
                spread(each["over_read"]["unread"]),
                "",
                "",
            ]
        )
    sizes = values["packed"]["bytes_of_layers"]
    for name, over in values["packed"]["over_bf16"].items():
        speed = f"{values['packed']['tokens_per_second'][name]:.2f}"
        rows.append([name, speed, spread(over), f"{sizes[name] / sizes['bf16']:.0%}", ""])
    rows += [[name, "", "", "", f"{value:.2f}"] for name, value in lost.items() if "," in name]
    header = ["", "tokens/s", "over the whole", "bytes read", "perplexity of stories260K"]
    path = Path(__file__).with_suffix(".json")
    one = json.loads(path.read_text("utf-8")).get("trained") if path.is_file() else None
    values |= {} if one is None else {"trained": one}
    publish(QUESTION, header, rows, values, __file__)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=7)
    parser.add_argument("layers", type=int, nargs="?", default=10)
    parser.add_argument("--trained", type=Path, metavar="MODEL")
    parser.add_argument("--recover", type=int, default=0, metavar="STEPS")
    asked = parser.parse_args()
    if asked.trained is None:
        main(asked.rounds, asked.layers)
    else:
        publish_one(one_model(asked.rounds, asked.trained, asked.recover))
