"""Is sleep free? Columns with 95 % of their neurons asleep beside our dense layers of the same total size, on the CPU.

    feed-forward   one token through one layer alone: width 2048, 32,768 hidden neurons, weights in bfloat16. Every arm
                   has several such layers and visits them in turn, so that a weight is read from memory, not cache
    decode         whole decode steps, batch 1, of a model where such layers dominate: bfloat16, and int8 packed on load
    training       whole training steps, width 512, 8192 hidden neurons, 8 x 256 tokens, AdamW, in single
                   precision and in bfloat16

Columns of 8, 16, 32 and 64 neurons, and of 8 behind a router of rank 128. Arms run in turn; ratios pair up by round.
On a GPU: columns_gpu.py.

    python benchmarks/columns.py [ROUNDS] [LAYERS]
"""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _bench import Arm, in_turn, median, publish, ratio, spread, timed
from decode import speaking

from pragnosia import PragnosiaConfig, PragnosiaForCausalLM, kernels
from pragnosia.inference.few_bits import load_in_few_bits
from pragnosia.model.attention import Moment
from pragnosia.model.columns import Columns
from pragnosia.model.feed_forward import FeedForward
from training import BATCH, LENGTH, training

AWAKE = 0.05
WIDTH, NEURONS, TOKENS = 2048, 32_768, 8
GRAINS = (8, 16, 32, 64)
RANK = 128
VOCABULARY = 4096
MOMENT = Moment((torch.empty(0), torch.empty(0)), {})
"""A layer alone asks of it only how much wakes."""
LEARNING_WIDTH, LEARNING_NEURONS, LEARNING_LAYERS = 512, 8192, 2


def feed_forward(neurons: int, grain: int | None, rank: int | None = None) -> dict[str, Any]:
    """A dense layer, or columns of `grain` of which one in twenty is awake."""
    if grain is None:
        return {"feed_forward": {"width": neurons, "activation": "relu2"}}
    router: dict[str, Any] = {"num_awake": max(1, round(neurons / grain * AWAKE))}
    if rank is not None:
        router["rank"] = rank
    return {"columns": {"width": neurons, "column_width": grain, "thalamus": router}}


def shape(width: int, layers: int, **organ: Any) -> PragnosiaConfig:
    """A model of these."""
    heads = {"num_heads": width // 128, "num_key_value_heads": max(1, width // 512), "head_dim": 128}
    return PragnosiaConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, max_position_embeddings=1024,
        attention=heads, **organ,
    )  # fmt: skip


def named(neurons: int) -> dict[str, dict[str, Any]]:
    """Every arm's organ, the dense one first."""
    arms = {"dense": feed_forward(neurons, None)}
    arms |= {f"columns of {grain}": feed_forward(neurons, grain) for grain in GRAINS}
    return arms | {f"columns of 8, rank {RANK}": feed_forward(neurons, 8, RANK)}


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights at little cost, the size that initialising gives them."""
    for name, tensor in module.named_parameters():
        if "norm" not in name:
            tensor.data.uniform_(-0.035, 0.035)
    return module


def layers_of(config: PragnosiaConfig, layers: int, dtype: torch.dtype, device: str = "cpu") -> list[Any]:
    """Feed-forwards alone, as a model has them: weights in a precision, balance and steering in single."""
    kind: Any = Columns if config.columns else FeedForward
    with torch.device("meta"):
        empty = [kind(config, 0) for _ in range(layers)]
    stack = []
    for layer in empty:
        layer.to_empty(device=device)
        for buffer in layer.buffers():
            buffer.zero_()
        for parameter in layer.parameters():
            parameter.data = torch.empty(parameter.shape, dtype=dtype, device=device)
        stack.append(filled(layer))
    return stack


def alone(organ: dict[str, Any], layers: int) -> Arm:
    """Tokens through the layers, one layer and one token at a time."""
    stack = layers_of(shape(WIDTH, 1, **organ), layers, torch.bfloat16)
    x = torch.randn(TOKENS, 1, 1, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()

    def work() -> float:
        with torch.inference_mode():
            for token in x:
                for layer in stack:
                    layer(token, MOMENT)
        return float(TOKENS * layers)

    return timed(work)


def deciding(organ: dict[str, Any], layers: int, packed: str | None, folder: Path) -> Arm:
    """Decode steps of a whole model."""
    config = shape(WIDTH, layers, **organ)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model: Any = PragnosiaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    model = filled(model).eval()
    if packed is not None:
        model.save_pretrained(folder / "model")
        del model
        gc.collect()
        model = load_in_few_bits(folder / "model", packed)
        for file in (folder / "model").iterdir():
            file.unlink()
    return speaking(model, 24)


def learning(organ: dict[str, Any], *, bf16: bool) -> Arm:
    """Training steps."""
    torch.manual_seed(0)
    return training(PragnosiaForCausalLM(shape(LEARNING_WIDTH, LEARNING_LAYERS, **organ)), bf16=bf16, steps=1)


def raced(arms: dict[str, Arm], rounds: int, unit: str) -> tuple[dict[str, Any], list[list[Any]]]:
    """Rates and ratios to dense; rows of a table."""
    rates = in_turn(arms, rounds=rounds)
    values, rows = {}, []
    for name, found in rates.items():
        against = ratio(found, rates["dense"])
        values[name] = {"per_second": median(found), "over_dense": against}
        rows.append([unit, name, f"{median(found):.1f}", "" if name == "dense" else spread(against)])
        print(rows[-1], flush=True)
    return values, rows


def main(rounds: int, layers: int) -> None:
    """Measure all three."""
    kernels.keep_freed_memory()
    results: dict[str, Any] = {}
    built = {name: alone(organ, layers) for name, organ in named(NEURONS).items()}
    results["feed-forward bf16"], rows = raced(built, rounds, "layers/s")
    built.clear()
    gc.collect()
    for packed in (None, "int8"):
        with tempfile.TemporaryDirectory() as folder:
            models = {name: deciding(organ, layers, packed, Path(folder)) for name, organ in named(NEURONS).items()}
        results[f"decode {packed or 'bf16'}"], more = raced(models, rounds, f"decode tok/s, {packed or 'bf16'}")
        rows += more
        models.clear()
        gc.collect()
    for bf16 in (False, True):
        how = "bf16" if bf16 else "fp32"
        learners = {name: learning(organ, bf16=bf16) for name, organ in named(LEARNING_NEURONS).items()}
        results[f"training {how}"], more = raced(learners, rounds, f"training tok/s, {how}")
        rows += more
        learners.clear()
    values = {
        "results": results, "rounds": rounds, "layers": layers, "width": WIDTH, "neurons": NEURONS, "awake": AWAKE,
        "training": {"width": LEARNING_WIDTH, "neurons": LEARNING_NEURONS, "layers": LEARNING_LAYERS,
                     "batch": [BATCH, LENGTH]}, "seed": 0,
    }  # fmt: skip
    header = ["what", "arm", "rate", "over dense"]
    publish("Columns, 95 % asleep, beside dense layers of the same total size, CPU", header, rows, values, __file__)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, int(sys.argv[2]) if len(sys.argv) > 2 else 4)
