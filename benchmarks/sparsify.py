"""What does a model gain that reads less of itself, and what does it lose? Inputs that sleep, and 2:4 weights.

Speed: greedy decoding of a random dense model of 1.4 GB (far beyond the caches), wide awake and at several levels, arms
in turn. Thresholds are found on random tokens, which let the same share sleep as text does. ReLU^2: how much a layout
that lets silent neurons go unread is worth, at the share that is silent in a random model and at 90 %. 2:4: the same
model beside its packed formats. Loss: perplexity of stories260K, as it lies (llama2.c), on simple stories held out.

    python benchmarks/sparsify.py [ROUNDS] [LAYERS]      the folder of real text is named by PRAGNOSIA_DATA
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from _bench import Arm, in_turn, median, publish, ratio, spread

from pragnosia import Pragnosia, PragnosiaConfig, kernels
from pragnosia.checkpoints import import_model
from pragnosia.data import Joined, resolve
from pragnosia.inference.loading import load_model, load_tokenizer
from pragnosia.inference.sampler import Sampling
from pragnosia.inference.sparsity import lay_silent, put_to_sleep, sites_of
from pragnosia.measure.accounting import account
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


def speaking(model: Any) -> Arm:
    """Tokens after the first, and their seconds."""
    speaker = Pragnosia(model)

    def arm() -> tuple[float, float]:
        decoder = speaker.decoder(NEW + 8)
        decoder.read([1, 2, 3, 4])
        times = [time.perf_counter() for _ in decoder.speak(NEW, Sampling())]
        assert decoder.decoding == "compiled"
        return len(times) - 1.0, times[-1] - times[0]

    return arm


def asleep(model: Any, sites: Any) -> Arm:
    """The same at other thresholds: weights are shared between levels."""
    speaks = speaking(model)

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
            for site, linear in sites_of(model).items():
                rows = kernels.pack(linear.weight.data, name)
                model.set_submodule(site, PackedLinear(rows, kernels.FORMATS[name], linear.in_features))
        sizes[name] = sum(t.nbytes for t in (*model.model.layers.parameters(), *model.model.layers.buffers()))
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
        if steps and cut:
            recover(model, found.seen, steps)
        elif steps:
            with patch.object(recovery, "kept", lambda weight: torch.ones_like(weight, dtype=torch.bool)):
                recover(model, found.seen, steps)
        for linear in sites_of(model).values() if cut else ():
            linear.weight.data = kernels.unpack(
                kernels.pack(linear.weight.data, "bf16-2:4"), linear.in_features, "bf16-2:4"
            )
        name = f"2:4, {steps} steps of recovery" if cut else f"whole, {steps} steps more"
        perplexities[name] = examine(model, found.held_out).perplexity
    return perplexities


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
    publish("Decoding a dense model that reads less of itself, CPU, batch 1", header, rows, values, __file__)


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*given, *(7, 10)[len(given) :])
