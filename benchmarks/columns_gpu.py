"""Is sleep free on a GPU? One token through columns, 95 % asleep, beside our dense layers of the same total size.

Width 2048 with 32,768 hidden neurons in bfloat16 (268 MB a layer, beyond any cache) unless WIDTH says otherwise; there
are sixteen neurons to each of the width. Every arm visits its layers in turn, several tokens one after the other, as
one recorded CUDA graph, so that nobody waits for the host: router, choice, Triton's gather programs and the dense
layer's two products alike. Microseconds a layer (median of the rounds, arms in turn), ratios pair up by round, and the
error of what the awake columns said against double precision on the same routing.

    columns_gpu.py [ROUNDS] [LAYERS] [WIDTH]
    columns_gpu.py tiny            in Triton's interpreter (TRITON_INTERPRET=1), to see that it runs; writes nothing
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from _bench import Arm, in_turn, median, publish, ratio, spread
from columns import AWAKE, MOMENT, TOKENS, WIDTH, layers_of, named, shape

from pragnosia import kernels
from pragnosia.kernels import triton
from pragnosia.model.columns import Columns

PER_WIDTH = 16
PART = 0.02  # seconds of one timing


def recorded(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same as one CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def timed(work: Callable[[], Any], visits: int, *, tiny: bool) -> Arm:
    """Layers visited, and seconds; `work` visits so many."""

    def wait() -> None:
        if not tiny:
            torch.cuda.synchronize()

    work()
    wait()
    started = time.perf_counter()
    work()
    wait()
    times = 1 if tiny else max(1, int(PART / (time.perf_counter() - started)))

    def arm() -> tuple[float, float]:
        begun = time.perf_counter()
        for _ in range(times):
            work()
        wait()
        return float(times * visits), time.perf_counter() - begun

    return arm


def said(layer: Columns, x: torch.Tensor, backend: str) -> torch.Tensor:
    """By the columns that a token wakes."""
    units, strengths, *_ = layer.thalamus(x, 1.0)
    up, down = layer.bank.up, layer.bank.down
    if backend == "gathered":  # in double precision, of who is awake alone
        awake = units[0]
        up, down, x, strengths = up[awake].double(), down[awake].double(), x.double(), strengths.double()
        units = torch.arange(len(awake), device=x.device)[None]
    given = x, units, strengths, up, down
    return kernels.bank(*given, activation=layer.bank.activation, backend=backend)


def error(layer: Any, x: torch.Tensor) -> float | None:
    """Relative RMS of what Triton's programs say; None of a dense layer."""
    if not isinstance(layer, Columns):
        return None
    got, exact = said(layer, x, "triton").double(), said(layer, x, "gathered")
    return float((got - exact).norm() / exact.norm())


@torch.inference_mode()
def main(rounds: int, layers: int, width: int, *, tiny: bool = False) -> None:
    """Measure, print, write."""
    if not (tiny or torch.cuda.is_available()):
        print("torch sees no CUDA device; this benchmark needs one")
        return
    device, dtype = ("cpu", torch.float32) if tiny else ("cuda", torch.bfloat16)  # the interpreter has no bfloat16
    if not triton.supports(torch.zeros(1, device=device)):
        print("this benchmark needs triton, and without a GPU its interpreter")
        return
    torch.manual_seed(0)
    neurons = PER_WIDTH * width
    xs = torch.randn(TOKENS, 1, 1, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    arms, wrong, read = {}, {}, {}
    for name, organ in named(neurons).items():
        stack = layers_of(shape(width, 1, **organ), layers, dtype, device)

        def work(stack: Any = stack) -> None:
            for x in xs:
                for layer in stack:
                    layer(x, MOMENT)

        wrong[name] = error(stack[0], xs[0, 0])
        read[name] = megabytes(stack[0])
        arms[name] = timed(work if tiny else recorded(work), TOKENS * layers, tiny=tiny)
    rates = in_turn(arms, rounds=rounds)
    values, rows = {}, []
    for name, found in rates.items():
        over = ratio(found, rates["dense"])
        values[name] = {"us": 1e6 / median(found), "over_dense": over, "megabytes": read[name], "error": wrong[name]}
        off = "" if wrong[name] is None else f"{wrong[name]:.1e}"
        rows.append(
            [name, f"{1e6 / median(found):.1f}", "" if name == "dense" else spread(over), f"{read[name]:.1f}", off]
        )
    header = ["arm", "us a layer", "over dense", "MB read", "error"]
    if tiny:
        print(header, *rows, sep="\n")
        return
    fixed = {"rounds": rounds, "layers": layers, "width": width, "neurons": neurons, "awake": AWAKE, "seed": 0}
    record = {"results": values, **fixed, "device": torch.cuda.get_device_name()}
    publish("Columns, 95 % asleep, beside dense layers of equal size, GPU, one token", header, rows, record, __file__)


def megabytes(layer: Any) -> float:
    """Of weights that one token reads."""
    sizes = {name: parameter.nbytes for name, parameter in layer.named_parameters()}
    if isinstance(layer, Columns):
        awake = layer.thalamus.num_awake(1.0) / layer.thalamus.num_units
        sizes = {name: size * (awake if name.startswith("bank.") else 1) for name, size in sizes.items()}
    return sum(sizes.values()) / 1e6


if __name__ == "__main__":
    if sys.argv[1:] == ["tiny"]:
        main(1, 1, 128, tiny=True)
    else:
        given = [int(word) for word in sys.argv[1:]]
        main(*given, *(7, 8, WIDTH)[len(given) :])
