"""Hugging Face directories whose matrices are quantised: another source, in which they are the numbers they stand for.

A scheme (bnb.py, gptq.py, awq.py) finds the matrices and reads rows of them; what it does not claim stays as it is.
Everything comes in one type: single precision where the token table is in it, else bfloat16 (half precision, in which
many of these are stored, has no compiled kernels), unless another is asked for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any, final

import torch
from torch import Tensor

from pragnosia.checkpoints.source import Index, Shape, TensorSource
from pragnosia.errors import CheckpointError

EMBEDDINGS = "model.embed_tokens.weight"
_AT_ONCE = 1 << 22
"""Weights that are dequantised at once."""
SCHEMES = {
    "bitsandbytes": "pragnosia.checkpoints.bnb:find",
    "gptq": "pragnosia.checkpoints.gptq:find",
    "awq": "pragnosia.checkpoints.awq:find",
}


class Coded(ABC):
    """One quantised matrix (out, in)."""

    shape: Shape
    names: frozenset[str]
    """Of the tensors that it is stored in."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`, in single precision."""


Find = Callable[[TensorSource, Mapping[str, Any]], dict[str, Coded]]
"""(the source, the quantization_config) -> the matrices, by the names they would have unquantised."""


@final
class Dequantised:
    """Another source with its quantised matrices as numbers."""

    def __init__(self, packed: TensorSource, settings: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
        module, _, attribute = SCHEMES[settings["quant_method"]].partition(":")
        find: Find = getattr(import_module(module), attribute)
        self._packed, self._coded = packed, find(packed, settings)
        hidden = {name for coded in self._coded.values() for name in coded.names}
        self._names = (set(packed.names) - hidden) | self._coded.keys()
        stored = packed.dtype(EMBEDDINGS) if EMBEDDINGS in packed.names else torch.float32
        self._dtype = dtype or (torch.float32 if stored == torch.float32 else torch.bfloat16)

    @property
    def names(self) -> Collection[str]:
        """As in the unquantised model."""
        return self._names

    def file(self, name: str) -> str:
        """Where it is stored."""
        return self._packed.file(min(self._coded[name].names) if name in self._coded else name)

    def shape(self, name: str) -> Shape:
        """Shape of the whole tensor."""
        return self._coded[name].shape if name in self._coded else self._packed.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """One for all of them."""
        return self._dtype

    def read(self, name: str, index: Index = ()) -> Tensor:
        """The part of `name` under `index` of its leading axes."""
        if name not in self._coded:
            return self._packed.read(name, index).to(self._dtype)
        coded = self._coded[name]
        rows = index[0] if index else slice(None)
        start, stop, _ = rows.indices(coded.shape[0]) if isinstance(rows, slice) else (rows, rows + 1, 1)
        out = torch.empty(stop - start, coded.shape[1], dtype=self._dtype)
        step = max(1, _AT_ONCE // coded.shape[1])
        for first in range(start, stop, step):
            last = min(first + step, stop)
            out[first - start : last - start] = coded.rows(first, last)
        part = out if isinstance(rows, slice) else out[0]
        return part[(slice(None),) * isinstance(rows, slice) + index[1:]] if index[1:] else part


def companions(packed: TensorSource, base: str, endings: Mapping[str, Shape | None]) -> frozenset[str]:
    """The names of the tensors beside `base`. Raises CheckpointError where one is missing or of another shape."""
    for ending, shape in endings.items():
        if base + ending not in packed.names:
            raise CheckpointError(f"{packed.file(base)}: tensor {base + ending} is missing beside {base}")
        got = packed.shape(base + ending)
        if shape is not None and math.prod(got) != math.prod(shape):
            raise CheckpointError(
                f"{packed.file(base + ending)}: {base + ending} has shape {got}, {base} calls for {shape}"
            )
    return frozenset(base + ending for ending in endings)
