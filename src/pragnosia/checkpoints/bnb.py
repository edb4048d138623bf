"""bitsandbytes: 4 bits (nf4, fp4) in blocks, their scales perhaps quantised again; 8 bits with a scale a row.

    4 bits    w[i] = table[code[i]] * absmax[i // block]; two codes a byte, the high one first, over rows' ends
    nested    absmax[b] = table8[code8[b]] * absmax8[b // block8] + offset
    8 bits    w[o, i] = code[o, i] * SCB[o] / 127

Dettmers et al. 2023 (arXiv:2305.14314) and 2022 (arXiv:2208.07339). Tables, shapes and blocks stand in the files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from pragnosia.checkpoints.dequantised import Coded, companions
from pragnosia.checkpoints.source import TensorSource
from pragnosia.errors import CheckpointError

_STATE = ".quant_state.bitsandbytes__"
_INVERSE = 7.874015718698502e-3  # 1 / 127 in the library's digits


def find(packed: TensorSource, settings: Mapping[str, Any]) -> dict[str, Coded]:
    """Every quantised matrix. Raises CheckpointError for one whose parts are missing or do not fit."""
    found: dict[str, Coded] = {}
    for name in packed.names:
        base, known, _ = name.partition(_STATE)
        if known:
            found[base] = _FourBits(packed, base, name)
        elif name.endswith(".SCB"):
            weight = f"{name.removesuffix('.SCB')}.weight"
            if weight not in packed.names:
                raise CheckpointError(f"{packed.file(name)}: tensor {weight} is missing beside {name}")
            found[weight] = _EightBits(packed, weight)
    return found


@final
class _FourBits(Coded):
    def __init__(self, packed: TensorSource, base: str, state: str) -> None:
        self._packed, self._base = packed, base
        try:
            said = json.loads(bytes(packed.read(state).tolist()))
            self.shape, self._block = tuple(said["shape"]), int(said["blocksize"])
            self._nested = (
                (int(said["nested_blocksize"]), float(said["nested_offset"])) if "nested_offset" in said else None
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{packed.file(state)}: {state} cannot be read ({error}); fetch it again") from error
        blocks = -(-math.prod(self.shape) // self._block)
        expected: dict[str, tuple[int, ...] | None] = {".absmax": (blocks,), ".quant_map": (16,)}
        if self._nested:
            expected |= {".nested_absmax": (-(-blocks // self._nested[0]),), ".nested_quant_map": (256,)}
        self.names = companions(packed, base, expected) | {base, state}
        held = math.prod(packed.shape(base)) * packed.dtype(base).itemsize
        if len(self.shape) != 2 or held != -(-math.prod(self.shape) // 2):
            raise CheckpointError(f"{packed.file(base)}: {base} holds {held} bytes, its state calls for {self.shape}")

    def rows(self, start: int, stop: int) -> Tensor:
        depth = self.shape[1]
        first, last = start * depth, stop * depth
        whole = self._packed.read(self._base).view(-1).view(torch.uint8)[first // 2 : -(-last // 2)]
        codes = torch.stack((whole >> 4, whole & 15), dim=-1).view(-1)[first % 2 :][: last - first]
        scales = self._scales[torch.arange(first, last) // self._block] if depth % self._block else None
        values = self._table[codes.int()]
        if scales is not None:
            return (values * scales).view(-1, depth)
        blocks = self._scales[first // self._block : last // self._block]
        return (values.view(-1, self._block) * blocks[:, None]).view(-1, depth)

    @cached_property
    def _table(self) -> Tensor:
        return self._packed.read(f"{self._base}.quant_map").float()

    @property
    def _scales(self) -> Tensor:
        absmax = self._packed.read(f"{self._base}.absmax")
        if self._nested is None:
            return absmax.float()
        block, offset = self._nested
        table, outer = (self._packed.read(f"{self._base}.nested_{part}").float() for part in ("quant_map", "absmax"))
        return table[absmax.int()] * outer.repeat_interleave(block)[: len(absmax)] + offset


@final
class _EightBits(Coded):
    def __init__(self, packed: TensorSource, weight: str) -> None:
        self._packed, self._weight = packed, weight
        self._base = weight.removesuffix(".weight")
        self.shape = packed.shape(weight)
        if len(self.shape) != 2 or packed.dtype(weight) != torch.int8:
            raise CheckpointError(
                f"{packed.file(weight)}: {weight} is no matrix of 8 bits, though {self._base}.SCB is there"
            )
        extra = {f"{self._base}.weight_format"} & set(packed.names)
        self.names = companions(packed, self._base, {".weight": self.shape, ".SCB": self.shape[:1]}) | extra

    def rows(self, start: int, stop: int) -> Tensor:
        scales = self._packed.read(f"{self._base}.SCB", (slice(start, stop),)).float()
        return self._packed.read(self._weight, (slice(start, stop),)) * scales[:, None] * _INVERSE
