"""MXFP4: gpt-oss units as the hub has them, four bits a weight, unpacked as they are read.

    w[32 g + 2 i], w[32 g + 2 i + 1] = 2^(scale[g] - 127) * e2m1(low, high four bits of block[g, i])

`…_blocks` (U, out, G, 16) and `…_scales` (U, out, G) stand for one tensor (U, in, out), in = 32 G.
Format: OCP Microscaling Formats v1.0. One way only: what was unpacked is exported unpacked.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pragnosia.checkpoints.source import Index, Shape, TensorSource
from pragnosia.errors import CheckpointError

BLOCKS, SCALES = "_blocks", "_scales"
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1 = torch.tensor([*_MAGNITUDES, *(-value for value in _MAGNITUDES)])


def dequantise(blocks: UInt8[Tensor, "*rows G 16"], scales: UInt8[Tensor, "*rows G"]) -> Float[Tensor, "*rows 32*G"]:
    """The values, in bf16, which holds every one of them exactly."""
    nibbles = torch.stack((blocks & 0x0F, blocks >> 4), dim=-1).flatten(-2)  # (…, G, 32)
    values = torch.ldexp(_E2M1[nibbles.int()], scales.int().unsqueeze(-1) - 127)
    return values.flatten(-2).to(torch.bfloat16)


@final
class Unpacked:
    """Another source, in which pairs of blocks and scales appear as the tensors they stand for."""

    def __init__(self, packed: TensorSource) -> None:
        self._packed = packed
        self._bases = {name.removesuffix(BLOCKS) for name in packed.names if name.endswith(BLOCKS)}
        for base in sorted(self._bases):
            if base + SCALES not in packed.names:
                raise CheckpointError(
                    f"{packed.file(base + BLOCKS)}: tensor {base + SCALES} is missing beside the blocks"
                )

    @property
    def names(self) -> Collection[str]:
        """Those of the packed source, without blocks and scales, and the unpacked ones."""
        hidden = {base + ending for base in self._bases for ending in (BLOCKS, SCALES)}
        return (set(self._packed.names) - hidden) | self._bases

    def file(self, name: str) -> str:
        """Where the blocks are."""
        return self._packed.file(name + BLOCKS if name in self._bases else name)

    def shape(self, name: str) -> Shape:
        """(U, in, out) for what is unpacked."""
        if name not in self._bases:
            return self._packed.shape(name)
        units, rows, *groups = self._packed.shape(name + BLOCKS)
        if len(groups) != 2 or self._packed.shape(name + SCALES) != (units, rows, groups[0]):
            raise CheckpointError(f"{self.file(name)}: {name + SCALES} does not fit {name + BLOCKS}")
        return units, 2 * groups[0] * groups[1], rows

    def dtype(self, name: str) -> torch.dtype:
        """bf16 for what is unpacked."""
        return torch.bfloat16 if name in self._bases else self._packed.dtype(name)

    def read(self, name: str, index: Index = ()) -> Tensor:
        """One unit of what is unpacked; anything of the rest."""
        if name not in self._bases:
            return self._packed.read(name, index)
        unit = index[:1]
        values = dequantise(self._packed.read(name + BLOCKS, unit), self._packed.read(name + SCALES, unit))
        return values.transpose(-1, -2)[index[1:]]
