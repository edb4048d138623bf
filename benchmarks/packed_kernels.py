"""What do packed weights cost in accuracy, and what do they buy in speed? Each format beside bfloat16 and torch's own.

Errors: relative RMS of normally distributed weights, of heavy-tailed ones, and of a layer's outputs for normally
distributed inputs (weights and inputs rounded, as `kernels.packed_linear` does). Speeds: one token through one layer,
arms in turn, the best round (the machine is shared); the large layer does not fit into the caches.

  packed_kernels.py                    on the CPU
  packed_kernels.py --device cuda      on a GPU: packed_gpu.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _bench import Arm, in_turn, publish, timed
from torch import Tensor

from pragnosia import kernels

SEED, DEPTH = 0, 2048
NAMES = ("bf16", "int8", "int4", "int3", "int2", "nf4")
OUTS = (2048, 32000, 131072)
PROMPT = 512
PART = 0.01  # seconds of one timing


def rms(wrong: Tensor, right: Tensor) -> float:
    """Relative RMS error."""
    return float((wrong.double() - right.double()).norm() / right.double().norm())


def q4_0(weights: Tensor) -> Tensor:
    """llama.cpp's 4.5 bits a weight, for comparison: groups of 32, the farthest value exactly at -8."""
    groups = weights.reshape(-1, 32)
    scale = (groups.gather(1, groups.abs().argmax(1, keepdim=True)) / -8).half().float()
    return ((groups / scale + 8.5).floor().clamp(0, 15) - 8).mul(scale).view_as(weights)


def errors() -> dict[str, dict[str, float]]:
    """Of weights and of outputs; and how fast a core packs."""
    normal = torch.randn(1024, DEPTH) * 0.02
    heavy = torch.distributions.StudentT(4.0).sample((1024, DEPTH)) * 0.02
    x = torch.randn(4, DEPTH)
    found = {"q4_0 (llama.cpp)": {"bits": 4.5, "normal": rms(q4_0(normal), normal), "heavy": rms(q4_0(heavy), heavy)}}
    half = normal.bfloat16()
    for name in NAMES:
        packing = in_turn({name: timed(lambda name=name: len(kernels.pack(half, name)))}, rounds=3)[name]
        packed = kernels.pack(normal, name)
        tails = kernels.unpack(kernels.pack(heavy, name), DEPTH, name)
        found[name] = {
            "bits": kernels.format_named(name).bits_per_weight(DEPTH),
            "normal": rms(kernels.unpack(packed, DEPTH, name), normal),
            "heavy": rms(tails, heavy),
            "outputs": rms(kernels.packed_linear(x, packed, DEPTH, name), x @ normal.t()),
            "pack_mb_s": 2 * DEPTH * max(packing) / 1e6,
        }
    return found


def repeated(work: Callable[[], Any]) -> Arm:
    """The same, often enough to be timed."""
    work()
    started = time.perf_counter()
    work()
    times = max(1, int(PART / (time.perf_counter() - started)))

    def many() -> tuple[float, float]:
        begun = time.perf_counter()
        for _ in range(times):
            work()
        return times, time.perf_counter() - begun

    return many


def torchs_own(outs: int, x: Tensor) -> dict[str, Arm]:
    """The quantised products that torch brings; the numbers do not matter to their speed."""
    codes, scale = torch.randint(-127, 127, (outs, DEPTH), dtype=torch.int8), torch.rand(outs).bfloat16()
    nibbles = torch._convert_weight_to_int4pack_for_cpu(torch.randint(0, 15, (outs, DEPTH), dtype=torch.int32), 1)
    pairs = torch.rand(DEPTH // 32, outs, 2).bfloat16()
    return {
        "torch int8": repeated(lambda: torch._weight_int8pack_mm(x, codes, scale)),
        "torch int4": repeated(lambda: torch._weight_int4pack_mm_for_cpu(x, nibbles, 32, pairs)),
    }


def speeds(outs: int, threads: int, rows: int = 1) -> dict[str, dict[str, float]]:
    """Microseconds and GB/s of every arm."""
    torch.set_num_threads(threads)
    x, some = torch.randn(rows, DEPTH).bfloat16(), torch.randn(2048, DEPTH).bfloat16() * 0.02
    layers = {name: kernels.pack(some, name).repeat(outs // 2048 + 1, 1)[:outs].contiguous() for name in NAMES}
    weight = some.repeat(outs // 2048 + 1, 1)[:outs].contiguous()
    arms = {"torch bf16": repeated(lambda: F.linear(x, weight)), **torchs_own(outs, x)}
    for name, packed in layers.items():
        arms[name] = repeated(lambda name=name, packed=packed: kernels.packed_linear(x, packed, DEPTH, name))
    sizes = {"torch bf16": 2.0 * weight.numel(), "torch int8": weight.numel(), "torch int4": 0.625 * weight.numel()}
    sizes |= {name: packed.numel() for name, packed in layers.items()}
    rates = in_turn(arms, rounds=7)
    return {name: {"us": 1e6 / max(each), "gb_s": sizes[name] * max(each) / 1e9} for name, each in rates.items()}


def main() -> None:
    """Measure, print, write."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    wrong = errors()
    with torch.no_grad():
        fast = {f"{outs} x {DEPTH}, {t}": speeds(outs, t) for outs in OUTS for t in (1, 2)}
        fast[f"{PROMPT} rows, 2"] = speeds(2048, 2, PROMPT)
    columns = {"normal": "normal %", "heavy": "heavy %", "outputs": "outputs %", "pack_mb_s": "pack MB/s"}
    header = ["", "bits", *columns.values(), *(f"{case}: us (GB/s)" for case in fast)]
    rows = []
    for name in ("q4_0 (llama.cpp)", *next(iter(fast.values()))):
        off = wrong.get(name, {})
        row: list[Any] = [name, off.get("bits", "")]
        row += [f"{off[key] * (1 if key == 'pack_mb_s' else 100):.3g}" if key in off else "" for key in columns]
        row += [f"{arms[name]['us']:.0f} ({arms[name]['gb_s']:.1f})" if name in arms else "" for arms in fast.values()]
        rows.append(row)
    values = {"seed": SEED, "errors": wrong, "speeds": fast}
    publish("What do packed weights cost, and what do they buy?", header, rows, values, __file__)


if __name__ == "__main__":
    if sys.argv[1:] == ["--device", "cuda"]:
        import packed_gpu

        packed_gpu.main([])
    else:
        main()
