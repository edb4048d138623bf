"""GPTQ: whole numbers of 2, 4 or 8 bits, packed along the inputs; a scale and a zero for each group and output.

    w[o, i] = scales[g, o] * (code[i, o] - zero[g, o] - 1),   g = g_idx[i]; a zero is stored one too small
    qweight (in bits / 32, out) and qzeros (groups, out bits / 32) are int32, the lowest bits first

With desc_act the groups of neighbouring inputs differ; g_idx says which is whose. `checkpoint_format: gptq_v2` stores
zeros as they are. Frantar et al. 2022 (arXiv:2210.17323); layout of AutoGPTQ and GPTQModel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from pragnosia.checkpoints.dequantised import Coded, companions
from pragnosia.checkpoints.source import TensorSource
from pragnosia.errors import CheckpointError

_BITS = (2, 4, 8)


def find(packed: TensorSource, settings: Mapping[str, Any]) -> dict[str, Coded]:
    """Every quantised matrix. Raises CheckpointError for bits or a layout that we do not read."""
    bits, layout = settings.get("bits"), settings.get("checkpoint_format", "gptq")
    if bits not in _BITS or layout not in ("gptq", "gptq_v2"):
        raise CheckpointError(
            f"{packed.file('')}: GPTQ of {bits} bits in the layout {layout!r}; we read 2, 4 and 8 bits in gptq, gptq_v2"
        )
    bases = [name.removesuffix(".qweight") for name in packed.names if name.endswith(".qweight")]
    return {f"{base}.weight": _Matrix(packed, base, bits, int(layout == "gptq")) for base in bases}


def unpacked(words: Tensor, bits: int, axis: int) -> Tensor:
    """int32 words as the codes they hold, the lowest bits first, along `axis`."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes = words.unsqueeze(axis + 1) >> shifts.view(-1, *[1] * (words.ndim - axis - 1)) & ((1 << bits) - 1)
    return codes.flatten(axis, axis + 1)


@final
class _Matrix(Coded):
    def __init__(self, packed: TensorSource, base: str, bits: int, added: int) -> None:
        self._packed, self._base, self._bits, self._added = packed, base, bits, added
        words, outs = packed.shape(f"{base}.qweight")
        self.shape = (outs, words * 32 // bits)
        companions(packed, base, {".scales": None, ".qzeros": None})
        groups = packed.shape(f"{base}.scales")[0]
        expected: dict[str, tuple[int, ...] | None] = {
            ".scales": (groups, outs),
            ".qzeros": (groups, outs * bits // 32),
        }
        self._has_order = f"{base}.g_idx" in packed.names
        if self._has_order:
            expected[".g_idx"] = (self.shape[1],)
        self.names = companions(packed, base, expected) | {f"{base}.qweight"}

    def rows(self, start: int, stop: int) -> Tensor:
        per_word = 32 // self._bits
        scales = self._packed.read(f"{self._base}.scales")[:, start:stop].float()
        words = self._packed.read(f"{self._base}.qzeros")[:, start // per_word : -(-stop // per_word)]
        zeros = unpacked(words, self._bits, 1)[:, start % per_word :][:, : stop - start] + self._added
        zeros &= (1 << self._bits) - 1 if self._added else -1  # the largest wraps round, as in their kernels
        codes = unpacked(self._packed.read(f"{self._base}.qweight", (slice(None), slice(start, stop))), self._bits, 0)
        groups = self._groups(len(scales))
        return ((codes - zeros[groups]) * scales[groups]).t()

    def _groups(self, count: int) -> Tensor:
        if self._has_order:
            groups = self._packed.read(f"{self._base}.g_idx").long()
            if len(groups) and not 0 <= int(groups.min()) <= int(groups.max()) < count:
                raise CheckpointError(
                    f"{self._packed.file(self._base)}: {self._base}.g_idx names groups that are not there"
                )
            return groups
        return torch.arange(self.shape[1]) * count // self.shape[1]
