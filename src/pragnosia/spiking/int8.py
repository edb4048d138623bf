"""Weights in eight bits: of each row whole numbers from -127 to 127, and one scale.

    w[r, c] = scale[r] q[r, c]        scale[r] = max_c |w[r, c]| / 127

A row belongs to what is read at once: a token's codes, a neuron's part of the readout, the synapses that leave a
neuron. So whoever reads rows of those that fired reads bytes, and multiplies by the scale once.

R rows, C weights of a row, S synapses, N source neurons.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor, nn

MOST = 127
SCALE = "_scale"


def hold(
    module: nn.Module, name: str, shape: tuple[int, ...], *, int8: bool, learns: bool = True, rows: int | None = None
) -> None:
    """Room for a matrix: a parameter, or int8 buffers that nobody can train; `rows` where a row is not an entry."""
    if int8:
        module.register_buffer(name, torch.empty(shape, dtype=torch.int8))
        module.register_buffer(name + SCALE, torch.empty(shape[0] if rows is None else rows))
    else:
        module.register_parameter(name, nn.Parameter(torch.empty(shape), requires_grad=learns))


def scale_of(module: nn.Module, name: str) -> Float[Tensor, " R"] | None:
    """Of a matrix that `hold` made room for; None where it is no int8."""
    scale: Tensor | None = getattr(module, name + SCALE, None)
    return scale


def weights_of(module: nn.Module) -> list[Tensor]:
    """Every weight, whatever it is kept in; who is wired to whom is none."""
    int8 = [one for _, one in module.named_buffers() if one.dtype is torch.int8]
    return [*module.parameters(), *int8]


def through(x: Float[Tensor, "... R"], weight: Tensor, scale: Float[Tensor, " R"] | None) -> Float[Tensor, "... C"]:
    """x times the matrix."""
    return x @ weight if scale is None else (x * scale) @ weight.to(x.dtype)


def across(x: Float[Tensor, "... C"], weight: Tensor, scale: Float[Tensor, " R"] | None) -> Float[Tensor, "... R"]:
    """x times the matrix laid on its side."""
    return x @ weight.T if scale is None else (x @ weight.to(x.dtype).T) * scale


def rounded(weight: Float[Tensor, "R C"]) -> tuple[Int8[Tensor, "R C"], Float[Tensor, " R"]]:
    """The nearest that eight bits hold."""
    scale = _scales(weight.abs().amax(1))
    return (weight / scale[:, None]).round().to(torch.int8), scale


def rounded_synapses(
    weights: Float[Tensor, " S"], starts: Int32[Tensor, " N_plus_1"]
) -> tuple[Int8[Tensor, " S"], Float[Tensor, " N"]]:
    """The same of synapses that lie by source neuron: theirs are a row."""
    row = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff().long())
    most = weights.new_zeros(len(starts) - 1).scatter_reduce(0, row, weights.abs(), "amax")
    scale = _scales(most)
    return (weights / scale[row]).round().to(torch.int8), scale


def filled(packed: nn.Module, source: nn.Module) -> None:
    """Give every part of `packed`, which has room for int8, what `source` has, rounded."""
    theirs = dict(source.named_modules())
    for name, module in packed.named_modules():
        given = theirs[name]
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if key.endswith(SCALE):
                continue
            value = getattr(given, key).detach()
            scale = scale_of(module, key)
            if scale is not None:
                rows: Any = getattr(given, "starts", None)
                value, found = rounded(value) if value.dim() == 2 else rounded_synapses(value, rows)
                scale.copy_(found)
            tensor.data.copy_(value)


def _scales(most: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
    return torch.where(most > 0, most / MOST, 1.0)
