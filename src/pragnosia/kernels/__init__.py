"""Sparse compute on plain tensors: routing, bank, linear layer, norm, the last layer's loss. One dispatch of backends.

B batch, T time or tokens, D width, U units in a bank, A awake units, F unit width, G parts of an activation,
V vocabulary. This room imports nothing of the house and raises ValueError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from pragnosia.kernels import awake, cpu, gathered, native, reference, rows, triton
from pragnosia.kernels.activations import ACTIVATIONS, Activation, activation_named
from pragnosia.kernels.compiled import native_library, native_status
from pragnosia.kernels.cross_entropy import linear_cross_entropy
from pragnosia.kernels.formats import FORMATS, Format, format_named, pack, unpack
from pragnosia.kernels.memory import keep_freed_memory
from pragnosia.kernels.norm import rms_norm
from pragnosia.kernels.packed import packed_linear
from pragnosia.kernels.recalling import read, read_packed, recall, step_rows
from pragnosia.kernels.routing import route

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "FORMATS",
    "Activation",
    "Format",
    "activation_named",
    "bank",
    "format_named",
    "keep_freed_memory",
    "linear",
    "linear_cross_entropy",
    "native_library",
    "native_status",
    "pack",
    "packed_linear",
    "read",
    "read_packed",
    "recall",
    "rms_norm",
    "route",
    "step_rows",
    "unpack",
]

BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": reference.bank,
    "cpu": cpu.bank,
    "native": native.bank,
    "gathered": gathered.bank,
    "triton": triton.bank,
}
GATHERED_SLOTS = 64  # a compiled graph of at most so many slots copies weights rather than break


def bank(
    x: Tensor,
    units: Tensor,
    strengths: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    activation: str,
    num_speaking: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Each token's woken units, weighted and summed: (T, D) -> (T, D).

    y[t] = sum_a strengths[t, a] (down[u] act(up[u] x[t] + up_bias[u]) + down_bias[u]),  u = units[t, a], -1 nobody.
    Of each act(…) only the `num_speaking` largest in size speak, or all.
    Raises ValueError on shapes that do not fit, unknown names, and units that are not there.
    """
    entry = activation_named(activation).limited(num_speaking)
    _check_shapes(x, units, strengths, up, down, up_bias, down_bias, entry)
    if torch.compiler.is_compiling():
        if backend in (None, "gathered") and units.numel() <= GATHERED_SLOTS:
            return gathered.bank(x, units, strengths, up, down, up_bias, down_bias, entry)
        from pragnosia.kernels import untraced  # brings the tracer along, which is here already

        return untraced.bank(x, units, strengths, up, down, up_bias, down_bias, entry, backend)  # type: ignore[no-any-return]
    return _run(x, units, strengths, up, down, up_bias, down_bias, entry, backend)


def _run(
    x: Tensor,
    units: Tensor,
    strengths: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: Activation,
    backend: str | None,
) -> Tensor:
    if backend is None:
        if native.supports(x, up):
            run = native.supported_bank
        else:
            triton_can = x.is_cuda and triton.supports(x) and activation.num_speaking is None
            run = triton.bank if triton_can else cpu.bank
    elif backend == "triton" and activation.num_speaking is not None:
        raise ValueError("backend 'triton' lets all neurons of a unit speak; leave num_speaking or backend out")
    elif backend in BACKENDS:
        run = BACKENDS[backend]
    else:
        raise ValueError(f"unknown backend {backend!r}. Available: {', '.join(BACKENDS)}")
    return run(x, units, strengths, up, down, up_bias, down_bias, activation)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What F.linear gives, faster for the few rows of a decode step on the CPU."""
    if not torch.compiler.is_compiling() and rows.supports_few(x, weight):
        return rows.linear(x, weight, bias)
    if not torch.compiler.is_compiling() and awake.supports(x, weight):
        return awake.linear(x, weight, bias)
    return torch.nn.functional.linear(x, weight, bias)


def _check_shapes(
    x: Tensor,
    units: Tensor,
    strengths: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: Activation,
) -> None:
    num_units, width, unit_width = down.shape
    tokens, awake, hidden = x.shape[0], units.shape[-1], activation.num_parts * unit_width
    if (
        x.shape == (tokens, width)
        and units.shape == (tokens, awake)
        and strengths.shape == (tokens, awake)
        and up.shape == (num_units, hidden, width)
        and (up_bias is None or up_bias.shape == (num_units, hidden))
        and (down_bias is None or down_bias.shape == (num_units, width))
    ):
        return
    for name, tensor, expected in (
        ("x", x, (tokens, width)),
        ("units", units, (tokens, awake)),
        ("strengths", strengths, (tokens, awake)),
        ("up", up, (num_units, hidden, width)),
        ("up_bias", up_bias, (num_units, hidden)),
        ("down_bias", down_bias, (num_units, width)),
    ):
        if tensor is not None and tensor.shape != expected:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected {expected} beside down {tuple(down.shape)}"
                f" with {activation.name}"
            )
