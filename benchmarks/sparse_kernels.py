"""What do the kernels gain, one by one? Training and decoding a bank, a bfloat16 row, the last layer's loss.

Each beside what one would otherwise use: transformers' Qwen3-MoE experts, torch's own operations, and a dense layer of
the same active size. One process, arms in turn; ratios are medians over rounds, times the best round (the machine is
shared). Not called kernels.py: transformers would take it for the package of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _bench import Arm, in_turn, median, publish, ratio, spread, timed
from torch import Tensor
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from pragnosia import kernels

SEED, TOKENS, WIDTH = 0, 2048, 256
SHAPES = [(4, 2, 128), (16, 2, 128), (64, 2, 128), (256, 2, 128), (64, 8, 32)]  # units, awake, unit width
DECODE = [
    (256, 16, 2, 128, torch.float32),
    (256, 256, 2, 128, torch.float32),
    (256, 16, 2, 128, torch.bfloat16),
    (256, 256, 2, 128, torch.bfloat16),
    (256, 64, 8, 32, torch.bfloat16),
    (2048, 64, 4, 768, torch.bfloat16),
]
LINEAR = [(768, 256), (8192, 256), (2048, 2048), (32000, 2048)]
SLOWEST_LOOP = 64  # transformers' eager loop takes seconds a step beyond so many units


def experts(units: int, awake: int, width: int, hidden: int = WIDTH) -> Qwen3MoeExperts:
    """transformers' bank of units; ours runs on its very weights."""
    config = Qwen3MoeConfig(
        hidden_size=hidden, moe_intermediate_size=width, num_experts=units, num_experts_per_tok=awake
    )
    module = Qwen3MoeExperts(config)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return module


def routing(tokens: int, units: int, awake: int) -> tuple[Tensor, Tensor]:
    """Who is woken, and how strongly: uniform."""
    scores, chosen = torch.randn(tokens, units).topk(awake)
    return chosen, scores.softmax(-1)


def learning(forward: Callable[[], Tensor], inputs: list[Tensor], grad: Tensor, *, bf16: bool) -> Arm:
    """Forward and backward once."""

    def work() -> float:
        for tensor in inputs:
            tensor.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            result = forward()
        result.backward(grad.to(result.dtype))
        return 1.0

    return timed(work)


def repeated(work: Callable[[], Any], times: int) -> Arm:
    """The same, often enough to be timed."""

    def many() -> float:
        for _ in range(times):
            work()
        return times

    return timed(many)


def milliseconds(rates: list[float]) -> float:
    """The best round."""
    return 1e3 / max(rates)


def training_rates(units: int, awake: int, width: int, *, bf16: bool, rounds: int) -> dict[str, list[float]]:
    """Steps per second of every arm on one shape."""
    theirs = experts(units, awake, width)
    x, grad = torch.randn(TOKENS, WIDTH, requires_grad=True), torch.randn(TOKENS, WIDTH)
    chosen, strengths = routing(TOKENS, units, awake)
    strengths.requires_grad_()
    up = torch.nn.init.normal_(torch.empty(2 * awake * width, WIDTH, requires_grad=True), std=0.05)
    down = torch.nn.init.normal_(torch.empty(WIDTH, awake * width, requires_grad=True), std=0.05)

    def bank(backend: str | None) -> Callable[[], Tensor]:
        weights = theirs.gate_up_proj, theirs.down_proj
        return lambda: kernels.bank(x, chosen, strengths, *weights, activation="swiglu", backend=backend)

    def transformers(implementation: str) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            theirs.config._experts_implementation = implementation
            return theirs(x, chosen, strengths)

        return forward

    def dense() -> Tensor:
        gate, value = F.linear(x, up).chunk(2, -1)
        return F.linear(F.silu(gate) * value, down)

    arms = {"ours": bank(None), "ours, torch": bank("cpu"), "grouped_mm": transformers("grouped_mm"), "dense": dense}
    if units <= SLOWEST_LOOP:
        arms["eager"] = transformers("eager")
    inputs = [x, strengths, up, down, *theirs.parameters()]
    return in_turn({name: learning(forward, inputs, grad, bf16=bf16) for name, forward in arms.items()}, rounds=rounds)


def training(rounds: int) -> dict[str, Any]:
    """The bank, forward and backward."""
    rows, results, medians = [], {}, {}
    for bf16 in (False, True):
        precision = "bf16" if bf16 else "fp32"
        for units, awake, width in SHAPES:
            rates = training_rates(units, awake, width, bf16=bf16, rounds=rounds)
            best = max(
                (name for name in ("grouped_mm", "eager") if name in rates), key=lambda name: median(rates[name])
            )
            against = {"transformers": ratio(rates["ours"], rates[best]), "dense": ratio(rates["ours"], rates["dense"])}
            shape = f"{units}/{awake}/{width} {precision}"
            medians[shape] = median(rates["ours"])
            times = {name: milliseconds(values) for name, values in rates.items()}
            results[shape] = {"milliseconds": times, "best_of_transformers": best, **against}
            order = ("ours", "ours, torch", "grouped_mm", "eager", "dense")
            cells = [f"{times[name]:.1f}" if name in times else "-" for name in order]
            rows.append([shape, *cells, spread(against["transformers"]), spread(against["dense"])])
    growth = {
        f"{few} -> {many} {precision}": medians[f"{few} {precision}"] / medians[f"{many} {precision}"]
        for few, many in (("4/2/128", "64/2/128"), ("16/2/128", "256/2/128"))
        for precision in ("fp32", "bf16")
    }
    header = ["units/awake/width", "ours ms", "our torch path", "grouped_mm", "eager", "dense"]
    show(f"Training a bank: {TOKENS} tokens, width {WIDTH}", [*header, "vs transformers", "vs dense"], rows)
    show("Cost when units grow 16x", ["units", "times the cost"], [[k, f"{v:.2f}"] for k, v in growth.items()])
    return {"training": results, "growth": growth}


def decoding(rounds: int) -> dict[str, Any]:
    """The bank for one token, without gradients."""
    rows, results = [], {}
    for hidden, units, awake, width, dtype in DECODE:
        theirs = experts(units, awake, width, hidden).to(dtype)
        theirs.config._experts_implementation = "grouped_mm"
        routes = [
            tuple(t if t.dtype == torch.long else t.to(dtype) for t in routing(1, units, awake)) for _ in range(16)
        ]
        x = torch.randn(1, hidden).to(dtype)
        turn = iter(range(10**9))

        def ours(x: Tensor = x, theirs: Any = theirs, routes: Any = routes, turn: Any = turn) -> None:
            weights = theirs.gate_up_proj, theirs.down_proj
            kernels.bank(x, *routes[next(turn) % 16], *weights, activation="swiglu")

        def grouped(x: Tensor = x, theirs: Any = theirs, routes: Any = routes, turn: Any = turn) -> None:
            theirs(x, *routes[next(turn) % 16])

        times = 200 if hidden < 1024 else 20
        with torch.no_grad():
            arms = {"ours": repeated(ours, times), "grouped_mm": repeated(grouped, max(1, times // 20))}
            rates = in_turn(arms, rounds=rounds)
        shape = f"{hidden}: {units}/{awake}/{width} {'bf16' if dtype == torch.bfloat16 else 'fp32'}"
        weights = 3 * awake * width * hidden * dtype.itemsize
        speed, against = weights * max(rates["ours"]) / 1e9, ratio(rates["ours"], rates["grouped_mm"])
        results[shape] = {
            "microseconds": {name: 1e3 * milliseconds(values) for name, values in rates.items()},
            "weights_gb_per_second": speed,
            "grouped_mm": against,
        }
        cells = [f"{1e3 * milliseconds(rates[name]):.0f}" for name in ("ours", "grouped_mm")]
        rows.append([shape, *cells, f"{speed:.1f}", spread(against)])
    header = ["width: units/awake/width", "ours us", "grouped_mm us", "GB/s of weights", "vs transformers"]
    show("Decoding: a bank for one token", header, rows)
    return {"decoding": results}


def single_rows(rounds: int) -> dict[str, Any]:
    """A linear layer for one token in bfloat16."""
    rows, results = [], {}
    for outs, depth in LINEAR:
        weight, x = torch.randn(outs, depth).bfloat16(), torch.randn(1, depth).bfloat16()
        times = max(10, 50_000_000 // weight.numel())
        with torch.no_grad():
            arms = {
                "ours": repeated(lambda x=x, weight=weight: kernels.linear(x, weight), times),
                "F.linear": repeated(lambda x=x, weight=weight: F.linear(x, weight), times),
                "mv": repeated(lambda x=x, weight=weight: torch.mv(weight, x[0]), times),
            }
            rates = in_turn(arms, rounds=rounds)
        speeds = {name: weight.nbytes * max(values) / 1e9 for name, values in rates.items()}
        against = ratio(rates["ours"], rates["F.linear"])
        results[f"{outs}x{depth}"] = {"gb_per_second": speeds, "F.linear": against}
        rows.append([f"{outs} x {depth}", *(f"{speed:.1f}" for speed in speeds.values()), spread(against)])
    header = ["weights", "ours GB/s", "F.linear", "torch.mv", "vs F.linear"]
    show("Decoding: one row of a linear layer in bf16", header, rows)
    return {"linear": results}


def last_layer(rounds: int, vocabulary: int = 8192) -> dict[str, Any]:
    """Logits and loss, forward and backward."""
    hidden = torch.randn(TOKENS, WIDTH, requires_grad=True)
    weight = torch.nn.init.normal_(torch.empty(vocabulary, WIDTH, requires_grad=True), std=0.05)
    targets = torch.randint(vocabulary, (TOKENS,))
    forwards: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: kernels.linear_cross_entropy(hidden, weight, targets),
        "apart": lambda: F.cross_entropy(F.linear(hidden, weight).float(), targets),
    }
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        forwards["torch"] = lambda: F.linear_cross_entropy(hidden, weight, targets, options=options)
    rows, results = [], {}
    for bf16 in (False, True):
        one, precision = torch.ones(()), "bf16" if bf16 else "fp32"
        arms = {name: learning(forward, [hidden, weight], one, bf16=bf16) for name, forward in forwards.items()}
        rates = in_turn(arms, rounds=rounds)
        times = {name: milliseconds(values) for name, values in rates.items()}
        against = {name: ratio(rates["ours"], rates[name]) for name in rates if name != "ours"}
        results[precision] = {"milliseconds": times, **against}
        rows.append([precision, *(f"{value:.0f}" for value in times.values()), *(spread(r) for r in against.values())])
    names = [name for name in forwards if name != "ours"]
    show(
        f"The last layer and its loss: {TOKENS} x {WIDTH} -> {vocabulary}",
        ["precision", "ours ms", *(f"{name} ms" for name in names), *(f"vs {name}" for name in names)],
        rows,
    )
    return {"last_layer": results}


def show(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A part of the table."""
    print(f"\n{title}")
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main(rounds: int = 7) -> None:
    """All parts."""
    torch.manual_seed(SEED)
    values: dict[str, Any] = {"seed": SEED, "threads": torch.get_num_threads(), "compiled": kernels.native_status()}
    values["compiled"] = values["compiled"].split(",")[0].lstrip("on (")
    kernels.keep_freed_memory()  # for every arm alike, as a training run does
    for part in (training, decoding, single_rows, last_layer):
        values |= part(rounds)
    summary = [[name, f"{value['transformers']['median']:.2f}x"] for name, value in values["training"].items()]
    publish("Training a bank against the best of transformers", ["shape", "ratio"], summary, values, __file__)


if __name__ == "__main__":
    main()
