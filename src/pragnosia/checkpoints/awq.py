"""AWQ: whole numbers of 4 bits, packed along the outputs; a scale and a zero for each group of inputs and each output.

    w[o, i] = scales[i // group, o] * (code[i, o] - zero[i // group, o])
    qweight (in, out / 8) and qzeros (groups, out / 8) are int32; lowest bits first: outputs 0 2 4 6 1 3 5 7

Lin et al. 2023 (arXiv:2306.00978); the "gemm" layout of AutoAWQ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from pragnosia.checkpoints.dequantised import Coded, companions
from pragnosia.checkpoints.gptq import unpacked
from pragnosia.checkpoints.source import TensorSource
from pragnosia.errors import CheckpointError

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word output 0, 1, 2, … of eight stands."""


def find(packed: TensorSource, settings: Mapping[str, Any]) -> dict[str, Coded]:
    """Every quantised matrix. Raises CheckpointError for bits or a layout that we do not read."""
    bits, layout = settings.get("bits"), str(settings.get("version", "gemm")).lower()
    if bits != 4 or layout != "gemm":
        raise CheckpointError(f"{packed.file('')}: AWQ of {bits} bits in the layout {layout!r}; we read 4 bits in gemm")
    bases = [name.removesuffix(".qweight") for name in packed.names if name.endswith(".qweight")]
    return {f"{base}.weight": _Matrix(packed, base) for base in bases}


@final
class _Matrix(Coded):
    def __init__(self, packed: TensorSource, base: str) -> None:
        self._packed, self._base = packed, base
        depth, words = packed.shape(f"{base}.qweight")
        self.shape = (8 * words, depth)
        companions(packed, base, {".scales": None, ".qzeros": None})
        groups = packed.shape(f"{base}.scales")[0]
        expected = {".scales": (groups, 8 * words), ".qzeros": (groups, words)}
        self.names = companions(packed, base, expected) | {f"{base}.qweight"}
        if depth % groups:
            raise CheckpointError(f"{packed.file(base)}: {base} has {groups} groups for {depth} inputs")

    def rows(self, start: int, stop: int) -> Tensor:
        first, last = start // 8, -(-stop // 8)
        scales = self._packed.read(f"{self._base}.scales")[:, start:stop].float()
        codes = self._codes("qweight", first, last)[:, start - 8 * first :][:, : stop - start]
        zeros = self._codes("qzeros", first, last)[:, start - 8 * first :][:, : stop - start]
        each = self.shape[1] // len(scales)
        values = (codes.view(len(scales), each, -1) - zeros[:, None]) * scales[:, None]
        return values.flatten(0, 1).t()

    def _codes(self, part: str, first: int, last: int) -> Tensor:
        words = self._packed.read(f"{self._base}.{part}", (slice(None), slice(first, last)))
        codes = unpacked(words, 4, 1).view(len(words), -1, 8)
        return codes[..., torch.tensor(_PLACES)].flatten(1)
