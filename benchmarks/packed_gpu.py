"""What do packed rows buy on a GPU? Triton programs that read them packed, beside unpacking, bfloat16 and torch's own.

A layer of OUTS x 2048 for 1, 4 and 512 rows; and what one token asks of a bank: 8 of 64 units of 768 neurons, woken
anew each time, their records in slots. Microseconds (median of the rounds, arms in turn), GB/s of weights read, and
the error against single precision on unpacked weights. 2:4 weights stand beside them for the layer.

  packed_gpu.py [rounds=7]      also: packed_kernels.py --device cuda
  packed_gpu.py tiny            in Triton's interpreter (TRITON_INTERPRET=1), to see that it runs; writes nothing
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _bench import Arm, in_turn, median, publish
from torch import Tensor

from pragnosia import kernels
from pragnosia.kernels import triton, triton_packed
from pragnosia.kernels.formats import FORMATS, pack, unpack
from pragnosia.kernels.slots import sort_slots
from pragnosia.kernels.triton_packed import PackedUnits
from pragnosia.quantisation.layers import PackedLinear
from pragnosia.quantisation.semi_structured import SemiStructuredLinear, sparse_form

NAMES = ("int8", "int4", "int3", "int2", "nf4")
DEPTH, OUTS, ROWS = 2048, (2048, 32768), (1, 4, 512)
UNITS, AWAKE, UNIT_WIDTH = 64, 8, 768
PART = 0.02  # seconds of one timing


class Place:
    """Where it runs, and how large."""

    def __init__(self, *, tiny: bool) -> None:
        self.device = torch.device("cpu" if tiny else "cuda")
        self.dtype = torch.float32 if tiny else torch.bfloat16  # the interpreter has no bfloat16
        self.depth, self.outs, self.rows = (128, (32,), (1, 20)) if tiny else (DEPTH, OUTS, ROWS)
        self.unit_width = 16 if tiny else UNIT_WIDTH
        self.part = 0.0 if tiny else PART

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def repeated(self, work: Callable[[], Any]) -> Arm:
        """The same, often enough to be timed; the first call compiles."""
        work()
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        times = max(1, int(self.part / (time.perf_counter() - started)))

        def many() -> tuple[float, float]:
            begun = time.perf_counter()
            for _ in range(times):
                work()
            self.wait()
            return times, time.perf_counter() - begun

        return many


def rms(got: Tensor, wanted: Tensor) -> float:
    """Relative RMS error."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def layer(place: Place, outs: int, rows: int, rounds: int) -> dict[str, dict[str, float]]:
    """One linear layer."""
    plain = torch.randn(outs, place.depth, device=place.device, dtype=place.dtype) * 0.02
    x = torch.randn(rows, place.depth, device=place.device, dtype=place.dtype)
    arms, sizes, wrong = {"torch bf16": place.repeated(lambda: F.linear(x, plain))}, {"torch bf16": plain.nbytes}, {}
    for name in NAMES:
        packed, entry = pack(plain.float().cpu(), name).to(place.device), FORMATS[name]
        arms[name] = place.repeated(
            lambda packed=packed, entry=entry: triton_packed.linear(x, packed, place.depth, entry, None)
        )
        arms[f"{name} unpacked"] = place.repeated(
            lambda packed=packed, name=name: F.linear(x, unpack(packed, place.depth, name, place.dtype))
        )
        sizes |= dict.fromkeys((name, f"{name} unpacked"), packed.numel())
        exact = x.double() @ unpack(packed, place.depth, name).double().t()
        wrong[name] = rms(triton_packed.linear(x, packed, place.depth, entry, None), exact)
    if sparse_form(place.device) is not None:
        rows_24 = pack(plain.float().cpu(), "bf16-2:4").to(place.device)
        sparse = SemiStructuredLinear(
            PackedLinear(rows_24, FORMATS["bf16-2:4"], place.depth), sparse_form(place.device)
        )
        with torch.inference_mode():
            arms["torch 2:4"] = place.repeated(lambda: sparse(x))
        sizes["torch 2:4"] = rows_24.numel()
    return measured(arms, sizes, wrong, rounds)


def bank(place: Place, rounds: int) -> dict[str, dict[str, float]]:
    """One token's units, in slots."""
    activation = kernels.activation_named("swiglu")
    x = torch.randn(1, place.depth, device=place.device, dtype=place.dtype)
    woken = sort_slots(torch.randperm(UNITS)[None, :AWAKE], UNITS)
    strengths, arms, sizes, wrong = torch.rand(AWAKE, device=place.device), {}, {}, {}
    tokens, order = woken.tokens.to(place.device), woken.order.to(place.device)
    for name in NAMES:
        of = PackedUnits(entry=FORMATS[name], width=place.depth, unit_width=place.unit_width, activation=activation)
        turned = of.entry.is_turned(of.unit_width)
        shapes = (of.num_rows, place.depth), of.entry.down_shape(place.depth, of.unit_width)
        one = torch.cat([pack(torch.randn(shape) * 0.03, name).flatten() for shape in shapes])
        records = F.pad(one, (0, -len(one) % 256)).to(place.device).repeat(UNITS, 1)
        spans = [(unit, unit * records.shape[1], start, stop) for unit, start, stop in woken.groups]
        out = x.new_empty(AWAKE, place.depth)
        biases: dict[str, Tensor | None] = {"up": None, "down": None}

        def ours(
            of: Any = of, spans: Any = spans, records: Any = records, out: Any = out, biases: Any = biases
        ) -> None:
            triton_packed.units(x, tokens, order, spans, records, of, strengths, biases, out, 1)

        def unpacked(
            of: Any = of, records: Any = records, shapes: Any = shapes, turned: Any = turned, dtype: Any = place.dtype
        ) -> Tensor:
            chosen = records[[unit for unit, *_ in woken.groups]]
            ends = of.up_bytes, of.up_bytes + shapes[1][0] * of.entry.row_bytes(shapes[1][1])
            parts = (
                chosen[:, : ends[0]].unflatten(1, (shapes[0][0], -1)),
                chosen[:, ends[0] : ends[1]].unflatten(1, (shapes[1][0], -1)),
            )
            up, down = (unpack(p, s[1], of.entry.name, dtype) for p, s in zip(parts, shapes, strict=True))
            hidden = activation(x.to(dtype) @ up.transpose(1, 2))
            said = hidden @ (down if turned else down.transpose(1, 2))
            return said[:, 0] * strengths[order, None].to(dtype)

        arms |= {name: place.repeated(ours), f"{name} unpacked": place.repeated(unpacked)}
        sizes |= dict.fromkeys((name, f"{name} unpacked"), AWAKE * one.numel())
        ours()
        wrong[name] = rms(out[order], unpacked(dtype=torch.float32))
    return measured(arms, sizes, wrong, rounds)


def measured(
    arms: dict[str, Arm], sizes: dict[str, int], wrong: dict[str, float], rounds: int
) -> dict[str, dict[str, float]]:
    """Microseconds, GB/s and error of every arm."""
    rates = in_turn(arms, rounds=rounds)
    found = {name: {"us": 1e6 / median(each), "gb_s": sizes[name] * median(each) / 1e9} for name, each in rates.items()}
    for name, error in wrong.items():
        found[name]["error"] = error
    return found


def main(words: list[str]) -> None:
    """Measure, print, write."""
    tiny = words == ["tiny"]
    if not (tiny or torch.cuda.is_available()):
        print("torch sees no CUDA device; this benchmark needs one")
        return
    place, rounds = Place(tiny=tiny), 1 if tiny else int(words[0].removeprefix("rounds=")) if words else 7
    if not triton.supports(torch.zeros(1, device=place.device)):
        print("this benchmark needs triton, and without a GPU its interpreter")
        return
    torch.manual_seed(0)
    shapes = [(outs, rows) for outs in place.outs for rows in place.rows]
    with torch.no_grad():
        cases = {f"{outs} x {place.depth}, {rows} rows": layer(place, outs, rows, rounds) for outs, rows in shapes}
        cases[f"{AWAKE} units of {place.unit_width}, 1 row"] = bank(place, rounds)
    header = ["", *(f"{case}: us (GB/s; error)" for case in cases)]
    rows = []
    for name in next(iter(cases.values())):
        row = [name]
        for arms in cases.values():
            one = arms.get(name)
            error = f"; {one['error']:.1e}" if one and "error" in one else ""
            row.append("" if one is None else f"{one['us']:.0f} ({one['gb_s']:.0f}{error})")
        rows.append(row)
    if tiny:
        print(header, *rows, sep="\n")
        return
    values = {"seed": 0, "rounds": rounds, "cases": cases, "device": torch.cuda.get_device_name()}
    publish("What do packed rows buy on a GPU?", header, rows, values, __file__)


if __name__ == "__main__":
    main(sys.argv[1:])
