"""2:4 rows: of every four neighbours along a row two are kept, and two bits say where each of them stood.

    row     K/2 kept values, their positions (16 to a 32-bit word, lowest bits first), then for int8 a scale in bfloat16
            for every 16 kept values: w = s q
    kept    the two of largest magnitude, or of largest w^2 E[x^2] where an importance is given; of equals the first

bfloat16 takes 9 bits a weight instead of 16, int8 5.5 instead of 8.5. NVIDIA's sparse tensor cores read the same
pattern (Mishra et al. 2021, arXiv 2104.08378). K is a multiple of 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

RUN = 16
"""Kept values that share a word of positions, and a scale."""
OF = 4
"""Neighbours of which two are kept."""


def check_width(depth: int) -> None:
    """Raise ValueError for rows that do not fall into fours."""
    if depth % OF:
        raise ValueError(f"2:4 keeps two of every four neighbours along the input; {depth} inputs are no multiple of 4")


def size_of(depth: int, bits: int) -> int:
    """Bytes of a row without padding; `bits` of a value."""
    runs = -(-(depth // 2) // RUN)
    return depth // 2 * bits // 8 + runs * (RUN // 4) + (2 * runs if bits == 8 else 0)


def kept(rows: Tensor, importance: Tensor | None = None) -> Tensor:
    """Which two of every four stay: a mask of the shape of rows (..., K)."""
    scores = rows.abs() if importance is None else rows.square() * importance
    a, b, c, d = scores.unflatten(-1, (-1, OF)).unbind(-1)
    ahead = [  # how many of the others are greater, or equal and before
        (b > a).int() + (c > a) + (d > a),
        (a >= b).int() + (c > b) + (d > b),
        (a >= c).int() + (b >= c) + (d > c),
        (a >= d).int() + (b >= d) + (c >= d),
    ]
    return torch.stack([count < 2 for count in ahead], -1).flatten(-2)


def write(rows: Tensor, bits: int, importance: Tensor | None, out: Tensor) -> None:
    """Rows (R, K) of single precision into `out` (R, row bytes) of zeros."""
    mask = kept(rows, importance).unflatten(-1, (-1, OF)).to(torch.uint8)
    places = torch.stack((mask.argmax(-1), 3 - mask.flip(-1).argmax(-1)), -1)  # (R, K/4, 2)
    values = rows.unflatten(-1, (-1, OF)).gather(-1, places).flatten(1)
    count, width = values.shape[1], values.shape[1] * bits // 8
    words = _filled(places.flatten(1).to(torch.uint8)).unflatten(-1, (-1, 4))
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=rows.device)
    packed = (words << shifts).sum(-1).to(torch.uint8)
    if bits == 16:
        numbers = values.bfloat16().contiguous().view(torch.uint8)
    else:
        runs = _filled(values).unflatten(-1, (-1, RUN))
        scales = (runs.abs().amax(-1) / 127).bfloat16()
        inverse = torch.where(scales > 0, 1 / scales.float(), 0)[..., None]
        codes = (runs * inverse).round().clamp(-127, 127).to(torch.int8).flatten(1)[:, :count]
        numbers = codes.contiguous().view(torch.uint8)
        heads = scales.contiguous().view(torch.uint8)
        out[:, width + packed.shape[1] : width + packed.shape[1] + heads.shape[1]] = heads
    out[:, :width] = numbers
    out[:, width : width + packed.shape[1]] = packed


def read(packed: Tensor, depth: int, bits: int) -> Tensor:
    """The values of rows (R, row bytes): (R, K) in single precision, half of them zeros."""
    count = depth // 2
    width, runs = count * bits // 8, -(-count // RUN)
    words = packed[:, width : width + runs * (RUN // 4)].reshape(len(packed), -1, 1)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device)
    places = (words >> shifts & 3).flatten(1)[:, :count].long()
    numbers = packed[:, :width].contiguous()
    if bits == 16:
        values = numbers.view(torch.bfloat16).float()
    else:
        at = width + runs * (RUN // 4)
        scales = packed[:, at : at + 2 * runs].contiguous().view(torch.bfloat16).float()
        values = numbers.view(torch.int8).float() * scales.repeat_interleave(RUN, 1)[:, :count]
    rows = values.new_zeros(len(packed), depth // OF, OF)
    return rows.scatter_(-1, places.unflatten(-1, (-1, 2)), values.unflatten(-1, (-1, 2))).flatten(1)


def _filled(values: Tensor) -> Tensor:
    """(R, N) with zeros up to a whole number of runs."""
    return torch.nn.functional.pad(values, (0, -values.shape[1] % RUN))
